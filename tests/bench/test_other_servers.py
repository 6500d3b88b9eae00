"""Asking servers that are not vLLM, or not as vLLM is asked by default."""

import asyncio
import json
from dataclasses import replace

import pytest

from chameleon_lora.bench.completion import Endpoint, PromptForm
from chameleon_lora.bench.replay import Target, bearer, replay, run_loop
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.workload.requests import TimedRequest
from tests.bench.fake_openai import FakeOpenAI

STOCK = Target("", "base", (100, 200))
CHAT = replace(STOCK, endpoint=Endpoint.CHAT)


def run(
    server: FakeOpenAI, target: Target = STOCK, *, model: str = "a", output_tokens: int = 3
) -> RequestRecord:
    """What became of one request of five prompt tokens."""

    async def replay_once() -> RequestRecord:
        async with server:
            there = replace(target, base_url=server.base_url)
            request = TimedRequest(0, 0.0, model, 5, output_tokens)
            (record,) = await replay(there, [request], patience_s=10.0)
            return record

    return run_loop(replay_once())


def chunk(**choice: object) -> bytes:
    """An event of one choice."""
    return b"data: " + json.dumps({"id": "x", "choices": [choice]}).encode() + b"\n\n"


def test_a_chat_is_one_message_of_about_as_many_tokens() -> None:
    """Five words for five tokens, and three answered tokens, for a role alone is none."""
    server = FakeOpenAI()
    record = run(server, CHAT)
    ((message,),) = [body["messages"] for body in server.bodies]
    assert ("user", 5) == (message["role"], len(message["content"].split()))
    assert (3, 3, None) == (len(record.token_times_s), record.output_tokens, record.error)


def test_a_text_prompt_has_about_as_many_tokens() -> None:
    """Five words where the server takes no ids."""
    server = FakeOpenAI()
    record = run(server, replace(STOCK, prompt_form=PromptForm.TEXT))
    (body,) = server.bodies
    assert 5 == len(body["prompt"].split())
    assert record.is_completed


def test_an_api_key_is_shown_and_kept_out_of_what_is_printed() -> None:
    """The server lets in who has it; the target's own words hold none."""
    target = replace(STOCK, headers=(bearer("secret"),))
    assert run(FakeOpenAI(api_key="secret"), target).is_completed
    assert "secret" not in repr(target)


def test_without_its_api_key_a_server_refuses() -> None:
    """Status 401."""
    record = run(FakeOpenAI(api_key="secret"))
    assert record.error == 'HTTP 401 for \'a\': {"error": "Unauthorized"}'


@pytest.mark.parametrize("ignore_eos", [True, False])
def test_a_strict_server_is_not_told_to_ignore_its_stop_token(ignore_eos: bool) -> None:
    """It completes only what OpenAI knows."""
    record = run(FakeOpenAI(is_strict=True), replace(STOCK, ignore_eos=ignore_eos))
    assert record.is_completed is not ignore_eos


@pytest.mark.parametrize(
    ("stream", "tokens"),
    [
        # what chats are answered with
        (chunk(delta={"role": "assistant", "content": ""}) + chunk(delta={"content": "x"}), 1),
        (chunk(delta={"role": "assistant", "content": None}) + chunk(delta={"content": "x"}), 1),
        (chunk(delta={"role": "assistant", "content": "x"}), 1),
        (chunk(delta={"content": "x"}) + chunk(delta={}, finish_reason="stop"), 1),
        (chunk(delta={"content": "x"}) + chunk(delta={"content": "y"}, finish_reason="stop"), 2),
        (chunk(delta={"content": ""}) + chunk(delta={"content": "é"}), 2),
        (chunk(delta={"reasoning_content": "x"}) + chunk(delta={"reasoning": "y"}), 2),
        # and completions
        (chunk(text="x") + chunk(text="", finish_reason="stop"), 1),
        (chunk(text="") + chunk(text="xy"), 2),
    ],
)
def test_a_token_is_a_chunk_that_says_something(stream: bytes, tokens: int) -> None:
    """Text, or text held back; a role, an end or an empty delta alone is none."""
    record = run(FakeOpenAI(raw=stream + b"data: [DONE]\n\n"), model="raw")
    assert (tokens, None) == (len(record.token_times_s), record.error)


def test_the_servers_count_says_whether_an_empty_end_was_a_token() -> None:
    """Special tokens have no text: two tokens by the server's count, two times."""
    usage = b'data: {"choices": [], "usage": {"prompt_tokens": 5, "completion_tokens": 2}}\n\n'
    stream = chunk(text="x") + chunk(text="", finish_reason="length") + usage
    record = run(FakeOpenAI(raw=stream + b"data: [DONE]\n\n"), model="raw")
    assert (2, 2) == (len(record.token_times_s), record.output_tokens)


def test_events_of_another_style_are_read() -> None:
    """CRLF, comments, an event in two lines, no usage, and an end right after [DONE]."""
    stream = (
        b': ping\r\n\r\nevent: x\r\ndata: {"choices": [{"text":\r\ndata: "x"}], "usage": null}\r\n'
        b"\r\n: ping\r\n\r\ndata: [DONE]"
    )
    record = run(FakeOpenAI(raw=stream), model="raw")
    assert (1, 1, None) == (len(record.token_times_s), record.output_tokens, record.error)


def test_what_follows_done_is_not_read() -> None:
    """An answer ends with [DONE]."""
    stream = chunk(text="x") + b"data: [DONE]\n\n" + chunk(text="y")
    assert 1 == len(run(FakeOpenAI(raw=stream), model="raw").token_times_s)


@pytest.mark.parametrize("target", [STOCK, CHAT])
def test_a_paced_server_is_heard_at_its_pace(target: Target) -> None:
    """Five tokens at 5/s take 0.8 s, first to last; a part of it even if this machine stalls."""
    record = run(FakeOpenAI(tokens_per_s=5.0), target, output_tokens=5)
    times_s = record.token_times_s
    assert (5, None) == (len(times_s), record.error)
    assert 0.2 < times_s[-1] - times_s[0]


def test_the_fast_loop_and_pythons_own_give_the_same() -> None:
    """Work is done and its value handed on."""

    async def answer() -> int:
        await asyncio.sleep(0)
        return 42

    assert 42 == run_loop(answer()) == asyncio.run(answer())
