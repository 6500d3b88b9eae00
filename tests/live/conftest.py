"""Real servers for the live tests: never more than one at a time, each started once a run."""

from collections.abc import Iterator

import pytest

from chameleon_lora.servers.process import running_server
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model
from faults.adapter_fixtures import AdapterFixtures
from tests.live.servers import WEIGHTS, Server, ServerSetup, server_spec
from tests.live.stock import Stock


@pytest.fixture(scope="session")
def fixtures(tmp_path_factory: pytest.TempPathFactory) -> AdapterFixtures:
    """The tiny model and its adapters."""
    pytest.importorskip("vllm")
    model = ensure_tiny_model(default_cache_dir())
    return AdapterFixtures.make(model, tmp_path_factory.mktemp("fixtures"), len(WEIGHTS))


@pytest.fixture(scope="session")
def stock(fixtures: AdapterFixtures, tmp_path_factory: pytest.TempPathFactory) -> Stock:
    """The answers of stock vLLM, whose server has ended by then."""
    return Stock.ask(fixtures, tmp_path_factory.mktemp("stock") / "server.log")


@pytest.fixture(scope="session")
def server(
    request: pytest.FixtureRequest,
    fixtures: AdapterFixtures,
    stock: Stock,  # noqa: ARG001  # so that its server is gone before this one starts
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Server]:
    """The server of the ServerSetup that the test names as parameter.

    pytest puts the tests of one parameter together, and ends one server before the next starts.
    """
    setup: ServerSetup = request.param
    home = tmp_path_factory.mktemp(setup.name)
    adapters = fixtures.served_below(home)
    with running_server(server_spec(setup, fixtures, adapters, home / "server.log")) as url:
        is_tidied = not (setup.is_plain or setup.is_pooling)
        yield Server(url, setup, adapters, fixtures, is_tidied)


@pytest.fixture(autouse=True)
def nothing_left_over(request: pytest.FixtureRequest) -> Iterator[None]:
    """A test leaves the shared server as it found it."""
    yield
    if "server" in request.fixturenames:
        server = request.getfixturevalue("server")
        if isinstance(server, Server) and server.is_tidied:
            server.tidy()
