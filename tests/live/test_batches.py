"""Requests that share a batch, or a slot one after the other, never get each other's adapter."""

import random

import pytest

from faults.adapter_fixtures import SERVED
from tests.live.client import Question
from tests.live.servers import BASE, IN_SLOTS, SHARED, Server
from tests.live.stock import ANSWER_TOKENS, PROMPTS, TALE, Stock

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("server", [SHARED, IN_SLOTS], indirect=True, ids=["shared", "slots"]),
]


def test_base_requests_in_a_batch_of_adapters_get_base_answers(
    server: Server, stock: Stock
) -> None:
    """While adapters fill both slots, if there are any, requests to the base model get stock vLLM's base answers.

    vLLM's CPU kernels would give them the last slot's adapter; sglang's server ended over as many
    adapters as slots and a request to the base model (its issue 23141).
    """
    tellers = [Question("a1", TALE, 300), Question("a2", TALE, 300)]
    asides = [Question(BASE, prompt, ANSWER_TOKENS) for prompt in PROMPTS * 2]
    replies = server.ask([*tellers, *asides], at_once=4)
    assert [stock.answer(None, q.prompt, ANSWER_TOKENS) for q in asides] == [
        reply.tokens for reply in replies[2:]
    ]
    assert [stock.answer(number, TALE, 300) for number in (1, 2)] == [
        reply.tokens for reply in replies[:2]
    ]


@pytest.mark.parametrize("seed", [1, 2])
def test_a_crowd_of_adapters_gets_nobody_elses(server: Server, stock: Stock, seed: int) -> None:
    """Of 72 requests over 8 adapters and the base model, on 2 slots or none, each gets stock vLLM's tokens.

    Stock vLLM mixed them up in its issue 47724. The answers of different weights differ, so that a
    mix-up would show.
    """
    names = [*SERVED, BASE] * 8
    random.Random(seed).shuffle(names)
    questions = [
        Question(name, PROMPTS[index % len(PROMPTS)], 4 + index % (ANSWER_TOKENS - 4))
        for index, name in enumerate(names)
    ]
    expected = [stock.answer(SERVED.get(q.model), q.prompt, q.tokens) for q in questions]
    assert expected == [reply.tokens for reply in server.ask(questions, at_once=8)]


def test_different_weights_answer_differently(server: Server, stock: Stock) -> None:
    """No two of the base model and the adapters agree on the first four tokens of a prompt."""
    del server
    for prompt in PROMPTS:
        sources = (None, *SERVED.values())
        answers = {stock.answer(weights, prompt, 4) for weights in sources}
        assert len(sources) == len(answers)
