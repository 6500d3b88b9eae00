"""With Chameleon, vLLM says token for token what it says without."""

import pytest

from tests.live.client import Question
from tests.live.servers import BASE, MANY_SLOTS, ONE_SEAT, SERVED, VLLM_PRESET, Server, Setup
from tests.live.stock import ANSWER_TOKENS, PROMPTS, Stock

NAMES = (*SERVED, BASE)
INTERLEAVED = [(name, prompt) for prompt in PROMPTS for name in NAMES]
"""45: each adapter and the base model in turn, with one prompt after the other."""


def with_name(setup: Setup) -> str:
    """How a failure names the server."""
    return setup.name


pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]
one_at_a_time = pytest.mark.parametrize(
    "server", [ONE_SEAT, MANY_SLOTS, VLLM_PRESET], indirect=True, ids=with_name
)


@one_at_a_time
@pytest.mark.parametrize("at_once", [1, 6])
def test_interleaved_adapters_answer_as_stock_vllm_does(
    server: Server, stock: Stock, at_once: int
) -> None:
    """45 requests to 8 adapters and the base model get stock vLLM's tokens, with enough slots or few."""
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
