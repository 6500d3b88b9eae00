"""What every test may lean on: Hypothesis profiles and excerpts of real traces."""

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]
LIVE = ("tests/live", "tests/faults/test_faults.py")
LONGEST = (*LIVE, "tests/engine_vllm", "tests/policy/test_slots_machine.py")
"""Begun first, so that none of them is left to one process at the end."""

# ci tries more and always the same examples; dev tries fresh ones each time.
settings.register_profile("ci", max_examples=200, derandomize=True, deadline=None)
settings.register_profile("dev", max_examples=50, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Excerpts of public traces; `README.md` there names their sources and licences."""
    return ROOT / "tests" / "data"


class SharedOnes(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """With several processes (`-n 2`), tests that share a server or an engine stay on one of them.

    The live servers take longest, so they come first.
    """

    def _split_scope(self, nodeid: str) -> str:
        file = nodeid.partition("::")[0]
        folder = file.rpartition("/")[0]
        return folder if folder in (LIVE[0], "tests/engine_vllm") else file

    def _assign_work_unit(self, node: Any) -> None:
        for scope in reversed(LONGEST):
            if scope in self.workqueue:
                self.workqueue.move_to_end(scope, last=False)
        super()._assign_work_unit(node)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedOnes:
    """xdist's own groups (`--dist loadgroup`) do not reach its scheduler with pytest 9.2."""
    return SharedOnes(config, log)
