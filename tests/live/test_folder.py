"""The watched folder: what is put there is served, what is taken away is not, what changes changes."""

import os
import shutil

import pytest

from chameleon_lora.adapters.header import WEIGHTS_NAME
from faults.adapter_fixtures import SERVED
from tests.live.client import OK, Connection, Question, Reply, until
from tests.live.servers import SHARED, Server
from tests.live.stock import ANSWER_TOKENS, BOOK, PROMPTS, TALE, Stock

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("server", [SHARED], indirect=True, ids=["shared"]),
]
NOT_FOUND = 404


def test_a_new_folder_answers_the_first_request_for_it(server: Server, stock: Stock) -> None:
    """An adapter whose folder appeared a moment ago is served at once, and listed from then on."""

    async def put_then_ask(client: Connection) -> tuple[Reply, set[str]]:
        name = server.put(8, "at-once")
        reply = await client.ask(Question(name, PROMPTS[0], ANSWER_TOKENS))
        return reply, set(await client.models())

    reply, models = server.run(put_then_ask)
    assert stock.answer(8, PROMPTS[0], ANSWER_TOKENS) == reply.tokens
    assert "at-once" in models


def test_a_new_folder_is_listed_without_a_request(server: Server) -> None:
    """An adapter whose folder appears is soon in GET /v1/models, with its folder as root."""

    async def put_then_list(client: Connection) -> str:
        async def is_listed() -> bool:
            return name in await client.models()

        await until(is_listed)
        return str((await client.models())[name]["root"])

    name = server.put(9)
    assert str(server.adapters / name) == server.run(put_then_list)


def test_a_deleted_adapter_ends_only_for_new_requests(server: Server, stock: Stock) -> None:
    """Streams under way with a deleted adapter, and others', end with stock vLLM's tokens.

    New requests for the deleted one get 404, and it is no longer listed.
    """

    async def delete_while_streaming(client: Connection) -> tuple[list[list[Reply]], Reply]:
        async with client.streaming(streams) as replies:
            shutil.rmtree(server.adapters / name)

            async def is_gone() -> bool:
                return name not in await client.models()

            await until(is_gone)
            refused = await client.ask(Question(name, PROMPTS[0]))
        return replies, refused

    name = server.put(3)
    streams = [Question(name, TALE, 320), Question(name, TALE, 280), Question("a1", TALE, 320)]
    replies, refused = server.run(delete_while_streaming)
    expected = [stock.answer(3, TALE, 320), stock.answer(3, TALE, 280), stock.answer(1, TALE, 320)]
    for tokens, told in zip(expected, replies, strict=True):
        assert {tokens} == {reply.tokens for reply in told if reply.status == OK}
        assert {NOT_FOUND} >= {reply.status for reply in told if reply.status != OK}
    assert {OK} == {reply.status for reply in replies[2]}
    assert NOT_FOUND == refused.status


def test_a_deleted_adapter_that_returns_is_served_again(server: Server, stock: Stock) -> None:
    """A name that was deleted and put back with other weights answers with the new ones."""

    async def there_and_back(client: Connection) -> list[Reply]:
        before = await client.ask(question)
        shutil.rmtree(server.adapters / name)

        async def is_gone() -> bool:
            return (await client.ask(question)).status == NOT_FOUND

        await until(is_gone)
        server.put(7, name)
        return [before, await client.ask(question)]

    name = server.put(4)
    question = Question(name, PROMPTS[2], ANSWER_TOKENS)
    expected = [stock.answer(number, PROMPTS[2], ANSWER_TOKENS) for number in (4, 7)]
    assert expected == [reply.tokens for reply in server.run(there_and_back)]


@pytest.mark.parametrize("prompt", [BOOK, PROMPTS[1]], ids=["cached-prefix", "short"])
def test_replaced_weights_answer_from_then_on(
    server: Server, stock: Stock, prompt: tuple[int, ...]
) -> None:
    """Once an adapter's file is replaced each answer is wholly the old weights' or the new ones'.

    The new ones' soon come, and after the first of them no old one, though the prompt was cached.
    """

    async def replace_while_asking(client: Connection) -> list[tuple[int, ...]]:
        answers = [(await client.ask(question)).tokens for _ in range(2)]
        server.fixtures.replace_weights(new, server.adapters / name)

        async def is_new() -> bool:
            answers.append((await client.ask(question)).tokens)
            return answers[-1] == expected_new

        await until(is_new)
        after = await client.ask_all([question] * 8, at_once=4)
        return [*answers, *(reply.tokens for reply in after)]

    old, new = 2, 11
    name = server.put(old)
    question = Question(name, prompt, ANSWER_TOKENS)
    expected_old = stock.answer(old, prompt, ANSWER_TOKENS)
    expected_new = stock.answer(new, prompt, ANSWER_TOKENS)
    answers = server.run(replace_while_asking)
    turn = answers.index(expected_new)
    assert [expected_old] * turn == answers[:turn]
    assert [expected_new] * (len(answers) - turn) == answers[turn:]


def test_weights_with_the_old_times_and_the_old_size_are_noticed(
    server: Server, stock: Stock
) -> None:
    """Put over the old ones as `cp -p` and rsync do, both files as old as archives make them."""

    async def copy_while_asking(client: Connection) -> bool:
        before = await client.ask(question)
        shutil.copy2(*weights)

        async def is_new() -> bool:
            return (await client.ask(question)).tokens == stock.answer(11, BOOK, ANSWER_TOKENS)

        await until(is_new)
        return before.tokens == stock.answer(2, BOOK, ANSWER_TOKENS)

    name, other = server.put(2), server.put(2)
    server.fixtures.replace_weights(11, server.adapters / other)
    weights = [server.adapters / folder / WEIGHTS_NAME for folder in (other, name)]
    for path in weights:
        os.utime(path, ns=(0, 0))
    assert weights[0].stat().st_size == weights[1].stat().st_size
    question = Question(name, BOOK, ANSWER_TOKENS)
    assert server.run(copy_while_asking)


def test_replacing_weights_leaves_streams_under_way_as_they_are(
    server: Server, stock: Stock
) -> None:
    """Each stream is wholly the old weights', or, if begun after the file was replaced, the new ones'."""

    async def replace_under_a_stream(client: Connection) -> tuple[list[Reply], Reply]:
        async with client.streaming([Question(name, TALE, 320)]) as replies:
            server.fixtures.replace_weights(3, server.adapters / name)
            new = stock.answer(3, PROMPTS[0], ANSWER_TOKENS)

            async def is_new() -> bool:
                return (await client.ask(Question(name, PROMPTS[0], ANSWER_TOKENS))).tokens == new

            await until(is_new)
        return replies[0], await client.ask(Question(name, TALE, 40))

    name = server.put(0)
    streamed, after = server.run(replace_under_a_stream)
    old, new = stock.answer(0, TALE, 320), stock.answer(3, TALE, 320)
    told = [reply.tokens for reply in streamed]
    turn = told.index(new) if new in told else len(told)
    assert turn > 0
    assert [old] * turn + [new] * (len(told) - turn) == told
    assert new[:40] == after.tokens


def test_the_adapters_of_the_start_are_still_there(server: Server, stock: Stock) -> None:
    """Whatever other tests did to the folder, each first adapter gives stock vLLM's answer."""
    questions = [Question(name, PROMPTS[4], ANSWER_TOKENS) for name in SERVED]
    expected = [(OK, stock.answer(n, PROMPTS[4], ANSWER_TOKENS)) for n in SERVED.values()]
    assert expected == [(r.status, r.tokens) for r in server.ask(questions, at_once=4)]
