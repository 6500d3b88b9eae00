"""Faults that servers of adapters had in public, and that this one must not have.

Others are tested where their subject is: vLLM's 42125 and sglang's 23141 in test_runtime_loading and
test_batches, vLLM's 20873 in tests/engine_vllm/test_end_to_end.
"""

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from tests.live.client import OK, Connection, Question, Reply, until
from tests.live.servers import BASE, SERVED, SHARED, Server
from tests.live.stock import ANSWER_TOKENS, BOOK, PROMPTS, TALE, TALE_TOKENS, Stock

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("server", [SHARED], indirect=True, ids=["shared"]),
]
WIDEST = ("a2", "a5")  # of the largest rank: each takes a whole one of the two slots


async def state(client: Connection) -> Any:
    """GET /chameleon/state."""
    status, text = await client.get("/chameleon/state")
    assert OK == status
    return json.loads(text)


async def load(client: Connection, name: str, path: Path) -> None:
    """POST /v1/load_lora_adapter, which must be done."""
    body = {"lora_name": name, "lora_path": str(path)}
    status, text = await client.post("/v1/load_lora_adapter", body)
    assert OK == status, text


async def adapters_known(client: Connection) -> int:
    """How many adapters the engine knows, wherever they are."""
    return sum(tier["adapters"] for tier in (await state(client))["tiers"].values())


async def busy(client: Connection) -> int:
    """Requests that wait, load or run."""
    lanes = (await state(client))["lanes"]
    return sum(lane["waiting"] + lane["loading"] + lane["running"] for lane in lanes)


def test_a_stream_keeps_its_adapter_while_others_are_loaded_aside(
    server: Server, stock: Stock, tmp_path: Path
) -> None:
    """The stream and each adapter that came and took a slot meanwhile give stock vLLM's tokens.

    vLLM issue 47724: adapters loaded aside moved slots under a batch whose mapping stayed the same, and
    a request under way went on with another user's adapter.
    """

    async def load_aside(client: Connection) -> tuple[list[Reply], list[Reply]]:
        async with client.streaming([Question("a1", TALE, TALE_TOKENS)]) as told:
            for name, path in late.items():
                await load(client, name, path)
            asides = await client.ask_all(questions, at_once=2)
        return told[0], asides

    numbers = range(4, 10)
    late = {server.fresh_name(): server.kit.place(n, tmp_path / f"{n}") for n in numbers}
    questions = [Question(name, prompt, ANSWER_TOKENS) for prompt in PROMPTS[:2] for name in late]
    told, asides = server.run(load_aside)
    assert {stock.answer(1, TALE, TALE_TOKENS)} == {reply.tokens for reply in told}
    assert [stock.answer(n, prompt, ANSWER_TOKENS) for prompt in PROMPTS[:2] for n in numbers] == [
        reply.tokens for reply in asides
    ]


@pytest.mark.parametrize("at_once", [1, 4])
@pytest.mark.parametrize("names", [("a0", "a1"), (*WIDEST, "a1", BASE)], ids=["two", "four"])
def test_adapters_that_alternate_do_not_spoil_each_others_kv(
    server: Server, stock: Stock, names: tuple[str, ...], at_once: int
) -> None:
    """Of 24 requests with one long prompt, each with the next adapter, all get stock vLLM's tokens.

    The prompt's blocks are cached for each after its first. vLLM issue 38606: KV blocks were corrupt
    after rapid alternation of adapters, in most runs.
    """
    turns = [names[turn % len(names)] for turn in range(24)]
    replies = server.ask([Question(name, BOOK, ANSWER_TOKENS) for name in turns], at_once)
    assert [stock.answer(SERVED.get(name), BOOK, ANSWER_TOKENS) for name in turns] == [
        reply.tokens for reply in replies
    ]


def test_an_unloaded_adapter_leaves_the_engine(
    server: Server, stock: Stock, tmp_path: Path
) -> None:
    """Its request under way ends with stock vLLM's tokens, and the engine then knows it no more.

    It was pinned, too. vLLM issue 54839: /v1/unload_lora_adapter never told the engine, where it stayed.
    """

    async def unload(client: Connection) -> tuple[Reply, list[int]]:
        known = [await adapters_known(client)]
        await load(client, name, path)
        assert OK == (await client.post("/v1/pin_lora_adapter", {"lora_name": name}))[0]
        begun = asyncio.Event()
        teller = asyncio.create_task(client.stream(Question(name, TALE, TALE_TOKENS), begun))
        await begun.wait()
        known.append(await adapters_known(client))
        assert OK == (await client.post("/v1/unload_lora_adapter", {"lora_name": name}))[0]
        reply = await teller

        async def is_forgotten() -> bool:
            return known[0] == await adapters_known(client)

        await until(is_forgotten)
        return reply, known

    name, path = server.fresh_name(), server.kit.place(3, tmp_path / "adapter")
    reply, (before, meanwhile) = server.run(unload)
    assert stock.answer(3, TALE, TALE_TOKENS) == reply.tokens
    assert 1 == meanwhile - before


def test_requests_cancelled_while_their_adapters_load_leave_the_slots_free(
    server: Server, stock: Stock
) -> None:
    """Afterwards each adapter answers with stock vLLM's tokens, and both slots can be had at once.

    sglang issue 25413: a request cancelled while its adapter was loaded in the background kept the slot
    for ever, until the engine stood still.
    """

    async def cancel_then_ask(client: Connection) -> tuple[list[Reply], list[Reply]]:
        for half in (cold[:8], cold[8:]):
            left = [asyncio.create_task(client.ask(Question(name, TALE, 800))) for name in half]

            async def is_at_work() -> bool:
                return len(half) <= await busy(client)  # noqa: B023  # awaited in this turn

            await until(is_at_work)
            for task in left:
                task.cancel()
            await asyncio.gather(*left, return_exceptions=True)

        async def is_idle() -> bool:
            return 0 == await busy(client)

        await until(is_idle)
        replies = await client.ask_all(questions, at_once=4)
        async with client.streaming([Question(n, TALE, TALE_TOKENS) for n in WIDEST]) as told:
            pass
        return replies, told[0]

    numbers = [*range(8), *range(8)]
    cold = [server.put(number) for number in numbers]
    questions = [Question(name, PROMPTS[0], ANSWER_TOKENS) for name in cold]
    replies, told = server.run(cancel_then_ask)
    assert [stock.answer(number, PROMPTS[0], ANSWER_TOKENS) for number in numbers] == [
        reply.tokens for reply in replies
    ]
    assert {stock.answer(2, TALE, TALE_TOKENS)} == {reply.tokens for reply in told}
