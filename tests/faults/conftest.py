"""Servers that faults are done to."""

import shutil
from collections.abc import Iterator

import pytest

from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model
from faults.adapter_fixtures import AdapterFixtures
from faults.context import SERVED
from faults.faulty import COMPILERS
from faults.servers import Started, Subject, started


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> AdapterFixtures:
    """The tiny model and its adapters."""
    pytest.importorskip("vllm")
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C compiler is installed: a disk that fails cannot be made")
    model = ensure_tiny_model(default_cache_dir())
    return AdapterFixtures.make(model, tmp_path_factory.mktemp("kit"), len(SERVED))


@pytest.fixture(scope="session")
def server(kit: AdapterFixtures, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Started]:
    """The one that outlives its faults."""
    home = tmp_path_factory.mktemp("faults") / "server"
    with started(Subject(), kit, home, default_cache_dir()) as up:
        yield up


@pytest.fixture
def doomed_server(
    kit: AdapterFixtures, server: Started, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Started]:
    """One that is not to outlive its fault; it answers as the other does."""
    home = tmp_path_factory.mktemp("doomed") / "server"
    with started(Subject(), kit, home, default_cache_dir(), server.known) as up:
        yield up
