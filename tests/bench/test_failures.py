"""What the records of a run say when the server is not what it should be."""

import asyncio
import socket
import sys
from pathlib import Path

import pytest

from chameleon_lora.bench.replay import Target, replay
from chameleon_lora.metrics.errors import by_cause
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.servers.process import ServerSpec, free_port, running_server
from chameleon_lora.workload.requests import TimedRequest
from tests.bench import fake_openai
from tests.bench.fake_openai import FakeOpenAI


def request(index: int, arrival_s: float, adapter: str, output_tokens: int = 3) -> TimedRequest:
    """A request of five prompt tokens."""
    return TimedRequest(index, arrival_s, adapter, 5, output_tokens)


PATIENCE_S = 10.0


def ask(base_url: str, *requests: TimedRequest) -> tuple[RequestRecord, ...]:
    """The records of a replay."""
    target = Target(base_url, "base", (100, 200))
    return asyncio.run(replay(target, requests, patience_s=PATIENCE_S))


def error_of(server: FakeOpenAI, model: str) -> str:
    """Why the only request of a run failed."""

    async def replay_once() -> tuple[RequestRecord, ...]:
        async with server:
            target = Target(server.base_url, "base", (100, 200))
            return await replay(target, [request(0, 0.0, model)], patience_s=10.0)

    (record,) = asyncio.run(replay_once())
    assert record.error is not None
    return record.error


@pytest.mark.parametrize(
    ("model", "error"),
    [
        ("html", "not OpenAI: an HTML page: <html>It works!</html>"),
        ("json", 'not OpenAI: JSON without choices: {"status": "fine"}'),
        (
            "whole",
            "not OpenAI: one whole reply where a stream was asked for: "
            '{"id": "cmpl", "choices": [{"text": "all at once"}]}',
        ),
        ("redirected", "HTTP 302 for 'redirected': elsewhere"),
    ],
)
def test_a_reply_that_is_not_openais_is_named(model: str, error: str) -> None:
    """The error shows what came."""
    assert error == error_of(FakeOpenAI(), model)


@pytest.mark.parametrize(
    ("raw", "error"),
    [
        (b"", "not OpenAI: text/event-stream without an event: nothing"),
        (b"Hello, world\n", "not OpenAI: text/event-stream without an event: Hello, world"),
        (b'data: {"token": 5}\n\n', 'not OpenAI: an event without choices: {"token": 5}'),
        (b"data: hello\n\n", "not OpenAI: an event of hello (JSON is malformed"),
        (b"data: [1]\n\n", "not OpenAI: an event of [1] (Expected `object`"),
        (b"x" * 2_000_000, "not OpenAI: ValueError: a line of more than 1048576 bytes"),
        (b'data: {"choices": []}\n\n', "stream broken off: it ended without [DONE]"),
        (b'data: {"error": "out of memory"}\n\n', 'stream broken off: "out of memory"'),
    ],
)
def test_a_stream_that_is_not_openais_is_named(raw: bytes, error: str) -> None:
    """No events, events of something else, a line without end, and an error in mid-stream."""
    assert error_of(FakeOpenAI(raw=raw), "raw").startswith(error)


def test_a_server_that_speaks_no_http_is_named() -> None:
    """A greeting in another protocol."""

    async def greet(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(b"220 mail.example ESMTP\r\n")
        await writer.drain()
        writer.close()

    async def replay_once() -> tuple[RequestRecord, ...]:
        async with await asyncio.start_server(greet, "127.0.0.1", 0) as server:
            host, port = server.sockets[0].getsockname()[:2]
            target = Target(f"http://{host}:{port}", "base", (100, 200))
            return await replay(target, [request(0, 0.0, "a")], patience_s=10.0)

    (record,) = asyncio.run(replay_once())
    assert (record.error or "").startswith("not OpenAI: ")


def test_an_unknown_adapter_is_named_among_known_ones() -> None:
    """The server has a; who asks for b fails, and the count says so."""

    async def replay_once() -> tuple[RequestRecord, ...]:
        async with FakeOpenAI(adapters=("a",)) as server:
            target = Target(server.base_url, "base", (100, 200))
            wanted = [request(0, 0.0, "a"), request(1, 0.0, "b"), request(2, 0.0, "b")]
            return await replay(target, wanted, patience_s=10.0)

    (count,) = by_cause(asyncio.run(replay_once()))
    assert ("HTTP 404", 2, ("b",)) == (count.cause, count.count, count.adapters)
    assert "for 'b'" in count.example


@pytest.mark.parametrize("url", ["http://no-such-host.invalid", "http://", "no address"])
def test_an_address_that_leads_nowhere_is_no_connection(url: str) -> None:
    """An unknown host, and what is no address."""
    (record,) = ask(url, request(0, 0.0, "a"))
    assert (record.error or "").startswith("no connection: ")


def test_nobody_at_the_port_is_a_refusal() -> None:
    """A port that was free a moment ago, and is held without listening."""
    with socket.socket() as held:
        held.bind(("127.0.0.1", 0))
        (record,) = ask(f"http://127.0.0.1:{held.getsockname()[1]}", request(0, 0.0, "a"))
    assert (record.error or "").startswith("connection refused: ")


@pytest.mark.slow
def test_a_server_that_is_killed_fails_its_requests_at_once(tmp_path: Path) -> None:
    """Three are open when it dies, one without a token: lost. Two come after: refused. No wait."""
    port = free_port()
    command = [sys.executable, fake_openai.__file__, str(port), "--tokens-per-s", "50"]
    with running_server(ServerSpec(command, port, tmp_path / "log", {})) as url:
        records = ask(
            url,
            request(0, 0.0, "a", output_tokens=1000),
            request(1, 0.0, "silent"),
            request(2, 0.2, "deadly"),
            request(3, 4.0, "a"),
            request(4, 4.1, "a"),
        )
    causes = [(record.error or "").partition(":")[0] for record in records]
    assert ["connection lost"] * 3 + ["connection refused"] * 2 == causes
    assert len(records[0].token_times_s) > 0
    assert all(record.end_s < records[3].sent_s for record in records[:3])
    assert all(record.end_s < record.sent_s + PATIENCE_S for record in records[3:])
