"""What every test may lean on: Hypothesis profiles, one seed a run, excerpts of real traces."""

import logging
import os
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings
from xdist.scheduler import LoadScopeScheduling

ROOT = Path(__file__).resolve().parents[1]
GROUPS = ("tests/live/", "tests/faults/test_faults.py", "tests/engine_vllm/")
"""Tests below one of these share servers or an engine: one process runs them. The longest come first."""
ALONE = (
    "tests/engine_vllm/test_end_to_end.py",
    *("tests/compare/", "tests/policy/", "tests/reproduce/", "tests/sim/"),
)
"""Files that take long and share nothing: next, one by one."""

# Always the same examples; fresh ones; many fresh ones. The seed of the fresh ones is the run's.
settings.register_profile("ci", max_examples=100, derandomize=True, deadline=None)
settings.register_profile("dev", max_examples=50, deadline=None, print_blob=True)
settings.register_profile("long", max_examples=300, deadline=None, print_blob=True)
settings.load_profile("ci" if os.environ.get("CI") else "dev")

# Left to itself, each vLLM binds its threads to the same core, also beside another test's.
os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
os.environ.setdefault("OMP_NUM_THREADS", "1")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    """Hypothesis draws from the seed that pytest-randomly prints, so `--randomly-seed` repeats it all."""
    if config.getoption("randomly_seed", None) == "default":
        config.option.randomly_seed = random.SystemRandom().getrandbits(32)
    seed = config.getoption("randomly_seed", None)
    if isinstance(seed, int) and config.getoption("hypothesis_seed") is None:
        config.option.hypothesis_seed = str(seed)


@pytest.fixture(scope="session")
def data_dir() -> Path:
    """Excerpts of public traces; `README.md` there names their sources and licences."""
    return ROOT / "tests" / "data"


@pytest.fixture
def caplog(caplog: pytest.LogCaptureFixture) -> Iterator[pytest.LogCaptureFixture]:
    """What this package logs, and nobody else: leavings of earlier tests may log at any time.

    Whatever vLLM has made of its loggers in this process, of which ours are children.
    """
    below_vllm = logging.getLogger("vllm.chameleon_lora")
    caplog.handler.addFilter(_is_ours)
    caplog.handler.setLevel(logging.NOTSET)  # vLLM raises that of each handler of the root
    below_vllm.addHandler(caplog.handler)
    below_vllm.propagate = False
    below_vllm.setLevel(logging.INFO)
    yield caplog
    below_vllm.setLevel(logging.NOTSET)
    below_vllm.propagate = True
    below_vllm.removeHandler(caplog.handler)
    caplog.handler.removeFilter(_is_ours)


def _is_ours(record: logging.LogRecord) -> bool:
    return record.name.removeprefix("vllm.").startswith("chameleon_lora.")


def scope_of(nodeid: str) -> str:
    """What one process runs together: a group's tests, or those of a file."""
    file = nodeid.partition("::")[0]
    if file in ALONE:
        return file
    return next((group for group in GROUPS if file.startswith(group)), file)


def turn_of(scope: str) -> int:
    """When a scope's turn is: what is long is not left to one process at the end."""
    if scope in GROUPS:
        return GROUPS.index(scope)
    return len(GROUPS) if scope.startswith(ALONE) else len(GROUPS) + 1


@pytest.hookimpl(trylast=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The order within a turn stays as pytest-randomly shuffled it, but for what ends a server."""
    items.sort(
        key=lambda item: (
            turn_of(scope_of(item.nodeid)),
            item.get_closest_marker("last") is not None,
        )
    )


class SharedOnes(LoadScopeScheduling):  # type: ignore[misc]  # xdist has no types
    """Hands out scopes in the order of the items.

    The marks of `--dist loadgroup` would do, but pytest 9.2 lost them: pytest-xdist's issue 1386.
    """

    def _split_scope(self, nodeid: str) -> str:
        return scope_of(nodeid)


def pytest_xdist_make_scheduler(config: pytest.Config, log: Any) -> SharedOnes:
    """Scopes keep their order, rather than those of most tests coming first."""
    config.option.loadscopereorder = False
    return SharedOnes(config, log)
