"""What every test may lean on: Hypothesis profiles and the shared traces."""

import os
from pathlib import Path

import pytest
from hypothesis import settings

ROOT = Path(__file__).resolve().parents[1]

# ci tries more and always the same examples; dev tries fresh ones each time.
settings.register_profile("ci", max_examples=300, derandomize=True, deadline=None)
settings.register_profile("dev", max_examples=50, deadline=None)
settings.load_profile("ci" if os.environ.get("CI") else "dev")


@pytest.fixture(scope="session")
def shared_data() -> Path:
    """The folder of traces, prompts and predictions beside the checkout; skips where there is none."""
    folder = ROOT.parent / "shared" / "data"
    if not folder.is_dir():
        pytest.skip("no folder ../shared/data beside the checkout: real traces are not at hand")
    return folder


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With several processes (`-n 2`), tests that share a server or an engine stay on one of them."""
    for item in items:
        folder = item.path.parent.name
        group = folder if folder in ("live", "engine_vllm") else str(item.path)
        item.add_marker(pytest.mark.xdist_group(group))
