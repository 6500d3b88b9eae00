"""Real servers for the live tests: never more than one at a time, each started once a run."""

from collections.abc import Iterator

import pytest

from chameleon_lora.servers.process import running_server
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model
from faults.adapter_fixtures import AdapterFixtures
from tests.live.servers import SERVED, WEIGHTS, Server, Setup, server_spec
from tests.live.stock import Stock


@pytest.fixture(scope="session")
def kit(tmp_path_factory: pytest.TempPathFactory) -> AdapterFixtures:
    """The tiny model and its adapters."""
    pytest.importorskip("vllm")
    model = ensure_tiny_model(default_cache_dir())
    return AdapterFixtures.make(model, tmp_path_factory.mktemp("kit"), len(WEIGHTS))


@pytest.fixture(scope="session")
def stock(kit: AdapterFixtures, tmp_path_factory: pytest.TempPathFactory) -> Stock:
    """The answers of stock vLLM, whose server has ended by then."""
    return Stock.ask(kit, tmp_path_factory.mktemp("stock") / "server.log")


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest,
    kit: AdapterFixtures,
    stock: Stock,  # noqa: ARG001  # so that its server is gone before this one starts
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """The server of the Setup that the test names as parameter.

    pytest puts the tests of one parameter together, and ends one server before the next starts.
    """
    setup: Setup = request.param
    home = tmp_path_factory.mktemp(setup.name)
    adapters = home / "adapters"
    adapters.mkdir()
    for name, number in SERVED.items():
        kit.place(number, adapters / name)
    with running_server(server_spec(setup, kit, adapters, home / "server.log")) as url:
        yield Server(url, adapters, kit)
