"""Servers that faults are done to."""

import shutil
from collections.abc import Iterator

import pytest

from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model
from faults.adapter_fixtures import SERVED, AdapterFixtures
from faults.fault_injector import COMPILERS
from faults.servers import RunningServer, ServerKind, started


@pytest.fixture(scope="session")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> AdapterFixtures:
    """The tiny model and its adapters."""
    pytest.importorskip("vllm")
    if not any(map(shutil.which, COMPILERS)):
        pytest.skip("no C compiler is installed: a disk that fails cannot be made")
    model = ensure_tiny_model(default_cache_dir())
    return AdapterFixtures.make(model, tmp_path_factory.mktemp("fixtures"), len(SERVED))


@pytest.fixture(scope="session")
def server(
    fixtures: AdapterFixtures, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """The one that outlives its faults."""
    home = tmp_path_factory.mktemp("faults") / "server"
    with started(ServerKind(), fixtures, home, default_cache_dir()) as up:
        yield up


@pytest.fixture
def doomed_server(
    fixtures: AdapterFixtures, server: RunningServer, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[RunningServer]:
    """One that is not to outlive its fault; it answers as the other does."""
    home = tmp_path_factory.mktemp("doomed") / "server"
    with started(ServerKind(), fixtures, home, default_cache_dir(), server.known) as up:
        yield up
