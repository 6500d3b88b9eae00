"""vLLM's own endpoints to load and unload adapters keep their contract, and never answer stale."""

import json
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.adapters.header import WEIGHTS_NAME
from faults.kinds.broken_adapters import Ruin, spoil, widen
from tests.live.client import OK, Connection, Question, Reply
from tests.live.servers import SHARED, Server
from tests.live.stock import ANSWER_TOKENS, BOOK, PROMPTS, Stock

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("server", [SHARED], indirect=True, ids=["shared"]),
]
BAD_REQUEST, NOT_FOUND = 400, 404


async def load(client: Connection, name: str, path: Path, **more: Any) -> tuple[int, str]:
    """POST /v1/load_lora_adapter."""
    body = {"lora_name": name, "lora_path": str(path), **more}
    return await client.post("/v1/load_lora_adapter", body)


async def unload(client: Connection, name: str) -> tuple[int, str]:
    """POST /v1/unload_lora_adapter."""
    return await client.post("/v1/unload_lora_adapter", {"lora_name": name})


def test_an_adapter_can_be_loaded_by_its_path(server: Server, stock: Stock, tmp_path: Path) -> None:
    """Loading answers with vLLM's words, and the adapter with stock vLLM's tokens."""

    async def load_then_ask(client: Connection) -> tuple[tuple[int, str], Reply, tuple[int, str]]:
        first = await load(client, name, path)
        reply = await client.ask(Question(name, PROMPTS[0], ANSWER_TOKENS))
        return first, reply, await load(client, name, path)

    name, path = server.fresh_name(), server.fixtures.place(10, tmp_path / "adapter")
    loaded, reply, again = server.run(load_then_ask)
    assert (OK, f"Success: LoRA adapter '{name}' added successfully.") == loaded
    assert stock.answer(10, PROMPTS[0], ANSWER_TOKENS) == reply.tokens
    assert BAD_REQUEST == again[0]
    assert "already been loaded" in again[1]


def test_loading_a_broken_adapter_is_refused(server: Server, tmp_path: Path) -> None:
    """A broken adapter gets 400 with the reason, in OpenAI's form, and is not served."""

    async def load_then_ask(client: Connection) -> tuple[tuple[int, str], Reply]:
        return await load(client, name, path), await client.ask(Question(name, PROMPTS[0]))

    name, path = server.fresh_name(), server.fixtures.place(10, tmp_path / "adapter")
    (path / WEIGHTS_NAME).write_bytes(b"\x10\x00")
    (status, text), reply = server.run(load_then_ask)
    assert BAD_REQUEST == status
    assert WEIGHTS_NAME in json.loads(text)["error"]["message"]
    assert NOT_FOUND == reply.status


def test_loading_from_nowhere_is_not_found(server: Server, tmp_path: Path) -> None:
    """A path without a folder gets 404 that names it."""
    path = tmp_path / "nowhere"
    status, text = server.run(lambda client: load(client, server.fresh_name(), path))
    assert NOT_FOUND == status
    assert str(path) in json.loads(text)["error"]["message"]


@pytest.mark.parametrize(
    ("ruin", "why"), [(spoil, "nan or infinity"), (widen, "this model has room for")]
)
def test_what_cannot_be_loaded_is_refused_and_the_former_stays(
    server: Server, stock: Stock, tmp_path: Path, ruin: Ruin, why: str
) -> None:
    """200 means that it works: what only the engine can see is seen before it is said.

    In place of another nothing changes for that one; a stream of it goes on. No name is taken.
    """

    async def load_bad(client: Connection) -> tuple[list[tuple[int, str]], list[Reply], Reply]:
        assert OK == (await load(client, name, good))[0]
        async with client.streaming([Question(name, PROMPTS[0], 200)]) as replies:
            refused = [
                await load(client, name, bad, load_inplace=True),
                await load(client, other, bad),
            ]
        after = await client.ask(Question(name, PROMPTS[0], ANSWER_TOKENS))
        assert NOT_FOUND == (await client.ask(Question(other, PROMPTS[0]))).status
        return refused, [*replies[0], after], after

    name, other = server.fresh_name(), server.fresh_name()
    good = server.fixtures.place(8, tmp_path / "good")
    bad = server.fixtures.place(5, tmp_path / "bad")
    ruin(bad, server.fixtures.model)
    refused, replies, after = server.run(load_bad)
    assert [OK] * len(replies) == [reply.status for reply in replies]
    assert stock.answer(8, PROMPTS[0], ANSWER_TOKENS) == after.tokens
    for (status, text), told in zip(refused, (name, other), strict=True):
        assert BAD_REQUEST == status
        assert f"Adapter '{told}' cannot be loaded: " in json.loads(text)["error"]["message"]
        assert why in text


@pytest.mark.parametrize("prompt", [BOOK, PROMPTS[1]], ids=["cached-prefix", "short"])
def test_loading_in_place_answers_with_the_new_weights(
    server: Server, stock: Stock, tmp_path: Path, prompt: tuple[int, ...]
) -> None:
    """After load_inplace from the same path the first answer is wholly the new weights'.

    In vLLM's issue 42125 a name loaded again answered from the KV that its former weights had cached.
    """

    async def replace(client: Connection) -> list[Reply]:
        assert OK == (await load(client, name, path))[0]
        replies = [await client.ask(question), await client.ask(question)]
        server.fixtures.replace_weights(11, path)
        assert OK == (await load(client, name, path, load_inplace=True))[0]
        return [*replies, *await client.ask_all([question] * 4, at_once=4)]

    name, path = server.fresh_name(), server.fixtures.place(8, tmp_path / "adapter")
    question = Question(name, prompt, ANSWER_TOKENS)
    old, new = (stock.answer(number, prompt, ANSWER_TOKENS) for number in (8, 11))
    assert [old, old, new, new, new, new] == [reply.tokens for reply in server.run(replace)]


@pytest.mark.parametrize("is_same_path", [True, False])
def test_an_unloaded_name_loaded_anew_has_the_new_weights(
    server: Server, stock: Stock, tmp_path: Path, *, is_same_path: bool
) -> None:
    """Unloaded, a name gets 404; loaded again with other weights, it answers with those alone.

    vLLM's issue 42125 too.
    """

    async def unload_then_load(client: Connection) -> list[Reply]:
        assert OK == (await load(client, name, first))[0]
        replies = [await client.ask(question)]
        assert OK == (await unload(client, name))[0]
        replies.append(await client.ask(question))
        if is_same_path:
            server.fixtures.replace_weights(9, first)
        assert OK == (await load(client, name, first if is_same_path else second))[0]
        return [*replies, await client.ask(question)]

    name = server.fresh_name()
    first = server.fixtures.place(6, tmp_path / "first")
    second = server.fixtures.place(9, tmp_path / "second")
    question = Question(name, BOOK, ANSWER_TOKENS)
    replies = server.run(unload_then_load)
    assert [OK, NOT_FOUND, OK] == [reply.status for reply in replies]
    assert stock.answer(6, BOOK, ANSWER_TOKENS) == replies[0].tokens
    assert stock.answer(9, BOOK, ANSWER_TOKENS) == replies[2].tokens


def test_an_unloaded_folder_stays_unloaded(server: Server) -> None:
    """An adapter of the watched folder that was unloaded gets 404 until its files change."""

    async def unload_then_ask(client: Connection) -> list[int]:
        before = await client.ask(question)
        status, _ = await unload(client, name)
        after = await client.ask_all([question] * 3, at_once=1)
        return [before.status, status, *(reply.status for reply in after)]

    name = server.put(7)
    question = Question(name, PROMPTS[0])
    assert [OK, OK, NOT_FOUND, NOT_FOUND, NOT_FOUND] == server.run(unload_then_ask)
