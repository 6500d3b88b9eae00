"""When the KV cache is too small for all that runs, requests wait or start over, and end right."""

import pytest

from chameleon_lora.policy.settings import PolicySettings
from tests.live.client import Connection, Question, Reply
from tests.live.servers import BASE, SHARED, Server
from tests.live.stock import TALE, TALE_TELLERS, Stock

MOST_REMEMBERED = PolicySettings().length.window

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("server", [SHARED], indirect=True, ids=["shared"]),
]


def test_preempted_requests_end_with_the_right_tokens(server: Server, stock: Stock) -> None:
    """Ten long answers, of which four fit at once, all equal stock vLLM's, taken alone.

    And vLLM did preempt some of them: 1536 tokens are all that the cache holds, and since the answers to
    this prompt were short so far, whatever other tests asked, more are let in than fit.
    """

    async def crowd(client: Connection) -> tuple[list[Reply], float]:
        await client.ask_all(short * MOST_REMEMBERED, at_once=MOST_REMEMBERED)
        before = await client.metric("vllm:num_preemptions_total")
        replies = await client.ask_all(questions, at_once=len(questions))
        return replies, await client.metric("vllm:num_preemptions_total") - before

    tellers = list(TALE_TELLERS) * 2
    lengths = [320 - 12 * index for index in range(len(tellers))]
    questions = [
        Question(BASE if weights is None else f"a{weights}", TALE, tokens)
        for weights, tokens in zip(tellers, lengths, strict=True)
    ]
    short = [Question(name, TALE, 1) for name in sorted({q.model for q in questions})]
    expected = [
        stock.answer(weights, TALE, tokens)
        for weights, tokens in zip(tellers, lengths, strict=True)
    ]
    replies, preemptions = server.run(crowd)
    assert expected == [reply.tokens for reply in replies]
    assert 0 < preemptions
