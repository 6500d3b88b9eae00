"""A broken adapter costs the requests that name it, and tells them why; nobody else notices."""

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from faults.kinds.broken_adapters import (
    break_config,
    cut_short,
    raise_rank,
    spoil,
    take_weights,
    widen,
)
from tests.live.client import OK, Connection, Question, Reply
from tests.live.servers import BASE, SHARED, Server
from tests.live.stock import ANSWER_TOKENS, PROMPTS, TALE, Stock

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("server", [SHARED], indirect=True, ids=["shared"]),
]
BAD_REQUEST = 400


FOUND_AT_SIGHT: list[tuple[Callable[[Path, Path], None], str]] = [
    (cut_short, WEIGHTS_NAME),
    (take_weights, WEIGHTS_NAME),
    (break_config, CONFIG_NAME),
    (raise_rank, "rank is 32, the limit is 16"),
]
FOUND_AT_LOAD: list[tuple[Callable[[Path, Path], None], str]] = [
    (spoil, "nan or infinity"),
    (widen, "its A is (8, 256), but this model has room for (8, 128)"),
]


def assert_explained(error: dict[str, Any] | None, name: str, why: str) -> None:
    """The error is of OpenAI's form and its message names the adapter and the reason."""
    assert error is not None
    assert {"message", "type", "param", "code"} == set(error)
    assert name in error["message"]
    assert why in error["message"]


def put_broken(server: Server, ruin: Callable[[Path, Path], None]) -> str:
    """The name of a folder that appeared in this state."""
    name = server.fresh_name()
    staged = server.fixtures.place(5, server.fixtures.root.parent / f"staged-{name}")
    ruin(staged, server.fixtures.model)
    staged.rename(server.adapters / name)
    return name


@pytest.mark.parametrize(("ruin", "why"), FOUND_AT_SIGHT)
def test_a_broken_folder_is_refused_with_its_reason(
    server: Server, ruin: Callable[[Path, Path], None], why: str
) -> None:
    """Requests, streaming or not, for what cannot be served get 400 with the reason; it is not listed."""

    async def ask_both_ways(client: Connection) -> tuple[list[Reply], set[str]]:
        question = Question(name, PROMPTS[0])
        replies = [await client.ask(question), await client.stream(question)]
        return replies, set(await client.models())

    name = put_broken(server, ruin)
    replies, models = server.run(ask_both_ways)
    assert [BAD_REQUEST, BAD_REQUEST] == [reply.status for reply in replies]
    for reply in replies:
        assert_explained(reply.error, name, why)
    assert name not in models


def test_a_folder_that_was_mended_is_served(server: Server, stock: Stock) -> None:
    """A refused adapter is served as soon as its folder is sound."""

    async def mend(client: Connection) -> tuple[Reply, Reply]:
        before = await client.ask(question)
        shutil.copyfile(
            server.fixtures.path(5) / WEIGHTS_NAME, server.adapters / name / WEIGHTS_NAME
        )
        return before, await client.ask(question)

    name = put_broken(server, take_weights)
    question = Question(name, PROMPTS[0], ANSWER_TOKENS)
    before, after = server.run(mend)
    assert BAD_REQUEST == before.status
    assert stock.answer(5, PROMPTS[0], ANSWER_TOKENS) == after.tokens


def test_a_broken_folder_with_the_base_models_name_changes_nothing(
    server: Server, stock: Stock
) -> None:
    """A broken folder named as the base model leaves the base model's answers alone."""
    (server.adapters / BASE).mkdir()
    (server.adapters / BASE / CONFIG_NAME).write_text("{")
    (server.adapters / BASE / WEIGHTS_NAME).write_text("")
    server.put(9)
    try:
        replies = server.ask([Question(BASE, PROMPTS[3], ANSWER_TOKENS)] * 3)
        replies += server.ask([Question(server.put(9), PROMPTS[0])])  # the folder has been seen
        replies += server.ask([Question(BASE, PROMPTS[3], ANSWER_TOKENS)])
    finally:
        shutil.rmtree(server.adapters / BASE)
    assert [OK] * 5 == [reply.status for reply in replies]
    expected = stock.answer(None, PROMPTS[3], ANSWER_TOKENS)
    assert {expected} == {reply.tokens for reply in (*replies[:3], replies[4])}


@pytest.mark.parametrize(("ruin", "why"), FOUND_AT_LOAD)
def test_a_load_that_fails_ends_the_requests_that_wait_for_it(
    server: Server, stock: Stock, ruin: Callable[[Path, Path], None], why: str
) -> None:
    """What breaks when it is first read ends its requests with 400, or with an error in the stream.

    The message names adapter and reason; streams under way with other adapters are not touched. What
    these files can never become is refused from then on before it is asked for, in streams too, and
    is listed no more.
    """

    async def ask_beside_streams(
        client: Connection,
    ) -> tuple[list[Reply], list[list[Reply]], list[Reply]]:
        doomed = Question(name, PROMPTS[0])
        async with client.streaming(others) as undisturbed:
            failed = await asyncio.gather(
                *(client.ask(doomed) for _ in range(3)), *(client.stream(doomed) for _ in range(2))
            )
            later = [await client.stream(doomed), await client.ask(doomed)]
        assert name not in await client.models()
        return failed, undisturbed, later

    name = put_broken(server, ruin)
    others = [Question("a0", TALE, 320), Question(BASE, TALE, 320)]
    failed, undisturbed, later = server.run(ask_beside_streams)
    assert {stock.answer(0, TALE, 320)} == {reply.tokens for reply in undisturbed[0]}
    assert {stock.answer(None, TALE, 320)} == {reply.tokens for reply in undisturbed[1]}
    assert [BAD_REQUEST] * 3 == [reply.status for reply in failed[:3]]
    assert [BAD_REQUEST] * 2 == [reply.status for reply in later]
    assert [()] * 7 == [reply.tokens for reply in (*failed, *later)]
    for reply in (*failed, *later):
        assert_explained(reply.error, name, why)
