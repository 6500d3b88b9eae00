"""How long a body may be and take, on a real HTTP server, and what comes back of what a client sent."""

import asyncio
import json
from collections.abc import Callable, MutableMapping
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.api import body
from chameleon_lora.engine_vllm.api.body import BodyLimits, Message, Receive, Send, most_bytes
from chameleon_lora.engine_vllm.api.shutdown import SHUTDOWN_WORDS
from chameleon_lora.settings import ServingSettings
from tests.engine_vllm.asgi_client import ask
from tests.engine_vllm.http_server import served
from tests.engine_vllm.tenant_settings import (
    ACME,
    LIMITS,
    MOST_BYTES,
    GuardedApp,
    tenants_text,
)

fastapi = pytest.importorskip("fastapi")
uvicorn = pytest.importorskip("uvicorn")
MOST = 1000
MIB = 1 << 20


def reading_app() -> Any:
    """A FastAPI app that answers with the length of what it was sent, and 404 with all of it."""
    app = fastapi.FastAPI()

    async def completions(sent: dict[str, Any]) -> int:
        return len(sent["prompt"])

    async def missing(sent: dict[str, Any]) -> None:
        raise fastapi.HTTPException(404, sent["prompt"])

    app.post("/v1/completions")(completions)
    app.post("/missing")(missing)
    return app


@dataclass
class Ending:
    """Whether the server ends."""

    is_near: bool = False


def limited(app: Any, ending: Ending | None = None, idle_s: float = 30.0) -> BodyLimits:
    """The app behind the limits."""
    return BodyLimits(app, lambda: MOST, lambda: bool(ending and ending.is_near), idle_s)


def head(length: int | None, path: str = "/v1/completions", more: str = "") -> bytes:
    """Of a request that announces so many bytes, or pieces."""
    size = "Transfer-Encoding: chunked" if length is None else f"Content-Length: {length}"
    lines = (f"POST {path} HTTP/1.1", "Host: x", "Content-Type: application/json", size, more)
    return "\r\n".join(line for line in lines if line).encode() + b"\r\n\r\n"


async def answer(reader: asyncio.StreamReader) -> tuple[int, dict[str, Any]]:
    """The status and the error of the next answer."""
    lines = (await reader.readuntil(b"\r\n\r\n")).decode().split("\r\n")
    size = next(line for line in lines if line.lower().startswith("content-length"))
    text = await reader.readexactly(int(size.split(":")[1]))
    return int(lines[0].split()[1]), json.loads(text)["error"]


async def refused(app: Any, *parts: bytes, **settings: Any) -> tuple[int, dict[str, Any]]:
    """The answer to a request that is sent in these parts and then left as it is."""
    async with served(app, **settings) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in parts:
            writer.write(part)
        found = await answer(reader)
        writer.close()
    return found


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize(
    ("parts", "size"),
    [
        ((head(MOST + 1),), str(MOST + 1)),
        ((head(10**15, more="Expect: 100-continue"),), str(10**15)),
        ((head(None), b"%x\r\n" % (MOST + 1), b"x" * (MOST + 1)), f"more than {MOST}"),
    ],
)
def test_a_body_above_the_limit_is_refused(parts: tuple[bytes, ...], size: str, http: str) -> None:
    """By what it announces before anything is read, else when it comes; the message names both numbers."""
    pytest.importorskip(http)
    status, error = asyncio.run(refused(limited(reading_app()), *parts, http=http))
    assert (413, 413, "RequestEntityTooLargeError") == (status, error["code"], error["type"])
    assert f"has {size} bytes, the most is {MOST}" in error["message"]
    assert "serving.max_body_bytes" in error["message"]


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("part", [b"", b'{"prompt": '])
def test_a_body_that_stands_still_is_given_up(part: bytes, http: str) -> None:
    """Whether it has begun or not; the handler's own answer to that is not heard."""
    pytest.importorskip(http)
    app = limited(reading_app(), idle_s=0.05)
    status, error = asyncio.run(refused(app, head(900), part, http=http))
    assert (408, "RequestTimeoutError") == (status, error["type"])
    assert "0.05 s" in error["message"]


@pytest.mark.parametrize(
    ("given", "told"), [({}, "1"), ({"Retry-After": "7"}, "7")], ids=["unsaid", "said"]
)
def test_whoever_is_told_not_now_is_told_when_to_come_again(
    given: dict[str, str], told: str
) -> None:
    """Whatever says so: the app, with its own time if it has one, or the limits themselves."""
    app = fastapi.FastAPI()

    async def busy(_sent: dict[str, Any]) -> Any:
        return fastapi.responses.JSONResponse({"error": "busy"}, 503, given)

    app.post("/v1/completions")(busy)
    found = ask(limited(app), "POST", "/v1/completions", b"{}")
    assert (503, told) == (found.status, found.headers["retry-after"])


def test_a_body_of_the_longest_kind_is_read() -> None:
    """To the last byte, and what follows it is the client's going."""
    text = json.dumps({"prompt": "x" * (MOST - len('{"prompt": ""}'))}).encode()
    found = ask(limited(reading_app()), "POST", "/v1/completions", text)
    assert (MOST, 200, str(MOST - 14)) == (len(text), found.status, found.text)


@pytest.mark.parametrize("part", [b"", b'{"prompt": '])
def test_an_unfinished_body_is_told_that_the_server_ends(
    part: bytes, caplog: pytest.LogCaptureFixture
) -> None:
    """As soon as it does: nobody waits for it until the time is over."""
    app = limited(reading_app(), Ending(is_near=True))
    status, error = asyncio.run(refused(app, head(900), part))
    assert (503, SHUTDOWN_WORDS) == (status, error["message"])
    assert not [record for record in caplog.records if record.exc_info]


async def ended_beside(app: Any, *parts: bytes) -> bytes:
    """What a client has got when the server has ended, which did not wait for it."""
    async with served(app, timeout_graceful_shutdown=0) as (server, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        for part in parts:
            writer.write(part)
        assert b"100" in await reader.readline()
        server.should_exit = True
    found = await reader.read()
    writer.close()
    return found


def test_a_body_that_is_cut_off_by_the_end_is_told_so(caplog: pytest.LogCaptureFixture) -> None:
    """503 in OpenAI's form, and nothing in the log that looks like a fault of the server's."""
    found = asyncio.run(
        ended_beside(limited(reading_app()), head(900, more="Expect: 100-continue"))
    )
    assert b" 503 " in found
    assert SHUTDOWN_WORDS.encode() in found
    assert not [record for record in caplog.records if record.exc_info]


async def endless(_scope: Message, receive: Receive, send: Send) -> None:
    """Streams without end."""
    await receive()
    await send({"type": "http.response.start", "status": 200, "headers": []})
    while True:
        await send({"type": "http.response.body", "body": b"x" * 65536, "more_body": True})


def test_a_stream_that_nobody_reads_ends_with_the_server(caplog: pytest.LogCaptureFixture) -> None:
    """Its writer stands still with what the connection holds, and is cut off without a trace in the log."""
    sent: list[int] = []

    async def counted(scope: Message, receive: Receive, send: Send) -> None:
        async def counting(message: Message) -> None:
            sent.append(len(message.get("body", b"")))
            await send(message)

        await endless(scope, receive, counting)

    async def stuck() -> None:
        async with served(limited(counted), timeout_graceful_shutdown=0) as (server, port):
            _, writer = await asyncio.open_connection("127.0.0.1", port, limit=1)
            writer.write(head(0))
            before = -1
            while before != len(sent):  # as long as it writes
                before = len(sent)
                await asyncio.wait({asyncio.create_task(asyncio.Event().wait())}, timeout=0.2)
            server.should_exit = True
        writer.close()

    asyncio.run(stuck())
    assert 0 < sum(sent) < 64 * MIB
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.parametrize("sent", ["x" * 900, "%s" * 400])
def test_what_a_client_sent_does_not_come_back_whole(sent: str) -> None:
    """An error is cut, in the middle, and says so; its length and the rest of it are right."""
    app = BodyLimits(reading_app(), lambda: MIB, lambda: False)
    found = ask(app, "POST", "/missing", json.dumps({"prompt": sent * 1000}).encode())
    assert (404, str(len(found.body))) == (found.status, found.headers["content-length"])
    told = json.loads(found.text)["detail"]
    assert len(told) <= 4096
    assert (sent[:100], sent[-100:]) == (told[:100], told[-100:])
    assert "characters cut" in told
    short = ask(app, "POST", "/missing", json.dumps({"prompt": sent}).encode())
    assert {"detail": sent} == json.loads(short.text)


@pytest.mark.parametrize(
    ("text", "kept"),
    [
        (b"x" * 10_000, "characters cut"),
        (b"\xff" * 10_000, "characters cut"),
        (b'{"detail": [{"input": "' + b"x" * 10_000 + b'", "loc": 3}]}', '"loc": 3'),
        (b"[" * 5000, "characters cut"),
    ],
)
def test_any_error_is_cut(text: bytes, kept: str) -> None:
    """Whatever it is written in, in one piece or several."""

    async def failing(_scope: Message, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 400, "headers": []})
        for part in (text[:50], text[50:]):
            await send({"type": "http.response.body", "body": part, "more_body": part == text[:50]})

    found = ask(limited(failing), "GET", "/")
    assert len(found.text) <= 4200
    assert kept in found.text


def test_answers_that_are_no_errors_stay_whole() -> None:
    """However long."""

    async def answering(_scope: Message, _receive: Receive, send: Send) -> None:
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": b"x" * MIB})

    assert MIB == len(ask(limited(answering), "GET", "/").body)


def test_a_servers_own_fault_is_still_its_own() -> None:
    """It goes on to the HTTP server, which tells it."""

    async def failing(*_: Any) -> None:
        raise KeyError("x")

    with pytest.raises(KeyError):
        ask(limited(failing), "GET", "/")


@dataclass
class PiecesClient:
    """One that sends a body in pieces, and notes how many were asked for."""

    pieces: list[bytes]
    asked: int = 0
    status: int | None = None
    text: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)

    async def receive(self) -> MutableMapping[str, Any]:
        """The next piece."""
        piece = self.pieces[self.asked]
        self.asked += 1
        return {
            "type": "http.request",
            "body": piece,
            "more_body": self.asked < len(self.pieces),
        }

    async def send(self, message: MutableMapping[str, Any]) -> None:
        """Notes the answer."""
        self.status = message.get("status", self.status)
        self.text += message.get("body", b"")

    def post(self, app: Any, key: str | None, path: str = "/v1/completions") -> int | None:
        """The status it gets."""
        headers = [(name.encode(), value.encode()) for name, value in self.headers.items()]
        if key is not None:
            headers.append((b"authorization", f"Bearer {key}".encode()))
        scope = {"type": "http", "method": "POST", "path": path, "headers": headers}
        asyncio.run(app(scope, self.receive, self.send))
        return self.status


@pytest.fixture
def guarded(tmp_path: Path) -> GuardedApp:
    """Acme may send one request a second, two at once, and has 600 tokens a minute."""
    (tmp_path / "tenants.toml").write_text(tenants_text(LIMITS))
    return GuardedApp.build(tmp_path / "tenants.toml")


@pytest.mark.parametrize("key", [None, "another-key-01234"])
def test_who_has_no_key_is_not_read(guarded: GuardedApp, key: str | None) -> None:
    """Nor told how much it might send."""
    client = PiecesClient([b"{}"], headers={"content-length": str(10**12)})
    assert (401, 0) == (client.post(guarded.middleware, key), client.asked)


def test_a_request_counts_before_its_body_is_read(guarded: GuardedApp) -> None:
    """So who has none left is not read, and one whose body will not do has had it."""
    bodies = [b"[1,", b"{}"]  # of a burst of two
    assert [400, 200] == [PiecesClient([text]).post(guarded.middleware, ACME) for text in bodies]
    client = PiecesClient([b"{}"])
    assert (429, 0) == (client.post(guarded.middleware, ACME), client.asked)


@pytest.mark.parametrize("path", ["/v1/completions", "/tokenize", "/v1/embeddings"])
@pytest.mark.parametrize("is_announced", [True, False])
def test_a_tenants_body_is_not_read_beyond_the_limit(
    guarded: GuardedApp, path: str, is_announced: bool
) -> None:
    """413, and nothing reaches the server behind."""
    piece = b"1" * (MOST_BYTES // 10)
    headers = {"content-length": str(len(piece) * 100)} if is_announced else {}
    client = PiecesClient([piece] * 100, headers=headers)
    assert 413 == client.post(guarded.middleware, ACME, path)
    assert (0 if is_announced else 11) == client.asked
    assert [] == guarded.behind.seen


def test_a_long_body_goes_on_as_a_short_one(guarded: GuardedApp) -> None:
    """Though it is parsed elsewhere."""
    text = json.dumps({"model": "acme-1", "prompt": [1] * 60_000, "priority": 3}).encode()
    assert MOST_BYTES > len(text) > body.IN_THREAD
    assert 200 == PiecesClient([text]).post(guarded.middleware, ACME)
    assert {"model": "acme-1", "prompt": [1] * 60_000} == json.loads(guarded.behind.seen[0]["body"])


NUMBERS = ("1" + "0" * 4000, "NaN", "Infinity", "-Infinity", "1e999", f'"{"9" * 5000}"', '"nan"')


@pytest.mark.parametrize("key", ["max_tokens", "n", "max_completion_tokens", "best_of"])
@pytest.mark.parametrize("number", NUMBERS, ids=range(len(NUMBERS)))
def test_a_number_beyond_all_limits_is_a_bad_request(
    guarded: GuardedApp, key: str, number: str
) -> None:
    """400 that names the field, and does not repeat thousands of digits."""
    client = PiecesClient([f'{{"model": "acme-1", "{key}": {number}}}'.encode()])
    assert 400 == client.post(guarded.middleware, ACME)
    assert f"'{key}'" in json.loads(client.text)["error"]["message"]
    assert len(client.text) < 400
    assert [] == guarded.behind.seen


@pytest.mark.parametrize(
    ("given", "media", "context", "most"),
    [
        ({}, True, 10**6, 256 * MIB),
        ({"tenants": "t"}, False, 1024, 2 * MIB),
        ({"tenants": "t"}, False, 131_072, 8 * MIB),
        ({"tenants": "t"}, True, 1024, 32 * MIB),
        ({"tenants": "t", "max_body_bytes": 5000}, True, 1024, 5000),
        ({"max_body_bytes": 5000}, False, 1024, 5000),
    ],
)
def test_the_limit_is_what_the_model_needs(
    given: dict[str, Any], media: bool, context: int, most: int
) -> None:
    """Unless it is set; without tenants all whom stock vLLM serves are served."""
    model = SimpleNamespace(is_multimodal_model=media, max_model_len=context)
    assert most == most_bytes(ServingSettings(**given), model)


def test_the_apps_own_limits_are_asked_for_when_they_are_needed(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Its engine comes after its routes; until then, and without one, the limit is the widest."""
    app = reading_app()
    body.limit(app, ServingSettings(tenants="t"))
    text = json.dumps({"prompt": "x" * (3 * MIB)}).encode()
    sizes = {"content-length": str(len(text))}
    post: Callable[[], int] = lambda: ask(app, "POST", "/v1/completions", text, sizes).status  # noqa: E731
    assert 200 == post()
    model = SimpleNamespace(is_multimodal_model=False, max_model_len=1024)
    engine = SimpleNamespace(vllm_config=SimpleNamespace(model_config=model))
    monkeypatch.setattr(app.state, "engine_client", engine, raising=False)
    assert 413 == post()
