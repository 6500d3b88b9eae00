"""Servers that faults are done to."""

import shutil
from collections.abc import Iterator

import pytest

from chameleon_lora.bench.model import default_cache_dir, ensure_tiny_model
from chameleon_lora.faults.faulty import COMPILERS
from chameleon_lora.faults.kit import Kit
from chameleon_lora.faults.scene import SERVED
from chameleon_lora.faults.servers import Started, Subject, started


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> Kit:
    """The tiny model and its adapters."""
    pytest.importorskip("vllm")
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C compiler is installed: a disk that fails cannot be made")
    model = ensure_tiny_model(default_cache_dir())
    return Kit.make(model, tmp_path_factory.mktemp("kit"), len(SERVED))


@pytest.fixture(scope="session")
def server(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """The one that outlives its faults."""
    home = tmp_path_factory.mktemp("faults") / "server"
    with started(Subject(), kit, home, default_cache_dir()) as up:
        yield up


@pytest.fixture
def doomed_server(kit: Kit, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """One that is not to outlive its fault."""
    home = tmp_path_factory.mktemp("doomed") / "server"
    with started(Subject(), kit, home, default_cache_dir()) as up:
        yield up
