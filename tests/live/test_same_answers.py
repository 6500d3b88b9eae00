"""With Chameleon, vLLM says token for token what it says without."""

import pytest

from faults.adapter_fixtures import SERVED
from tests.live.client import Question
from tests.live.servers import BASE, MANY_SLOTS, NAMES, VLLM_PRESET, Server, ServerSetup
from tests.live.stock import ANSWER_TOKENS, INTERLEAVED, Stock


def with_name(setup: ServerSetup) -> str:
    """How a failure names the server."""
    return setup.name


pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]
one_at_a_time = pytest.mark.parametrize(
    "server",
    [pytest.param(MANY_SLOTS, marks=pytest.mark.long), VLLM_PRESET],
    indirect=True,
    ids=with_name,
)


@one_at_a_time
@pytest.mark.parametrize("at_once", [1, 6])
def test_interleaved_adapters_answer_as_stock_vllm_does(
    server: Server, stock: Stock, at_once: int
) -> None:
    """45 requests to 8 adapters and the base model get stock vLLM's tokens, with enough slots or few.

    A server with one seat and two slots is asked the same in test_tenants.
    """
    expected = [stock.answer(SERVED.get(n), p, ANSWER_TOKENS) for n, p in INTERLEAVED]
    questions = [Question(name, prompt, ANSWER_TOKENS) for name, prompt in INTERLEAVED]
    assert expected == [reply.tokens for reply in server.ask(questions, at_once)]


@one_at_a_time
def test_every_adapter_is_listed(server: Server) -> None:
    """GET /v1/models names the base model and each adapter, with its folder as root."""
    models = server.run(lambda client: client.models())
    assert set(NAMES) <= set(models)
    assert {BASE} == {models[name]["parent"] for name in SERVED}
    assert {n: str(server.adapters / n) for n in SERVED} == {n: models[n]["root"] for n in SERVED}
