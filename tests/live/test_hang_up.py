"""Clients that hang up take nothing with them."""

import asyncio

import pytest

from tests.live.client import Connection, Question, Reply, until
from tests.live.servers import BASE, SERVED, SHARED, Server
from tests.live.stock import ANSWER_TOKENS, PROMPTS, TALE, Stock

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("server", [SHARED], indirect=True, ids=["shared"]),
]
NAMES = (*SERVED, BASE)


async def is_idle(client: Connection) -> bool:
    """Whether the engine runs nothing and nothing waits."""
    running = await client.metric("vllm:num_requests_running")
    waiting = await client.metric("vllm:num_requests_waiting")
    return (0.0, 0.0) == (running, waiting)


def test_ten_clients_that_hang_up_leave_the_server_free(server: Server, stock: Stock) -> None:
    """After 10 streams were cut at once nothing runs or waits, and a full load gets right answers.

    Four streams run at a time, so six of the ten also wait and are cut as soon as they run.
    """

    async def cut_then_load(client: Connection) -> list[Reply]:
        cut = [Question(NAMES[i % len(NAMES)], TALE, 800) for i in range(10)]
        await asyncio.gather(*(client.hang_up(question, after_tokens=3) for question in cut))
        await until(lambda: is_idle(client))
        return await client.ask_all(burst, at_once=len(burst))

    burst = [Question(name, prompt, ANSWER_TOKENS) for prompt in PROMPTS[:3] for name in NAMES]
    expected = [stock.answer(SERVED.get(q.model), q.prompt, q.tokens) for q in burst]
    assert expected == [reply.tokens for reply in server.run(cut_then_load)]


def test_clients_that_hang_up_while_waiting_are_forgotten(server: Server, stock: Stock) -> None:
    """Requests whose clients left before the first token never run, and the others are answered."""

    async def leave_the_queue(client: Connection) -> list[Reply]:
        begun = asyncio.Event()
        teller = asyncio.create_task(client.stream(Question("a0", TALE, 300), begun))
        await begun.wait()
        impatient = [
            asyncio.create_task(client.ask(Question(NAMES[i % len(NAMES)], TALE, 800)))
            for i in range(10)
        ]
        await asyncio.sleep(0.3)  # long enough to be sent, too short to be answered
        for task in impatient:
            task.cancel()
        await asyncio.gather(*impatient, return_exceptions=True)
        aside = await client.ask(Question("a5", PROMPTS[0], ANSWER_TOKENS))
        replies = [await teller, aside]
        await until(lambda: is_idle(client))
        return replies

    replies = server.run(leave_the_queue)
    assert stock.answer(0, TALE, 300) == replies[0].tokens
    assert stock.answer(5, PROMPTS[0], ANSWER_TOKENS) == replies[1].tokens
