"""A client that takes nothing of its answer, and one that is slow."""

import asyncio
import socket
from collections.abc import AsyncIterator
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.api.body import Message, Receive, Send
from chameleon_lora.engine_vllm.api.routes import with_routes
from chameleon_lora.engine_vllm.api.unread import LIMIT, LOOKS, UnreadAnswer, limiting
from tests.engine_vllm.http_server import served

uvicorn = pytest.importorskip("uvicorn")
PIECE = b"x" * 65536
ASKED = "GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
SOCKET = (
    ASKED[:-2]
    + "Connection: Upgrade\r\nUpgrade: websocket\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {}\r\n\r\n".format(
        "A" * 22 + "=="
    )
)
START: Message = {"type": "http.response.start", "status": 200, "headers": []}


class UnreadApp:
    """Answers /stream with pieces without end, /long with 64 MiB at once, and others in a word."""

    def __init__(self, limit_s: float) -> None:
        self.state = SimpleNamespace(**{LIMIT: limit_s})
        self.asked: set[str] = set()
        self.left = asyncio.Event()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Streams until the client has gone, as Starlette finds out."""
        self.asked.add(scope["path"])
        await receive()
        if scope["type"] == "websocket":
            await send({"type": "websocket.accept"})
            await self._stream(receive, send, {"type": "websocket.send", "bytes": PIECE})
            return
        await send(START)
        if scope["path"] != "/stream":
            body = PIECE * 1024 if scope["path"] == "/long" else b"!"
            await send({"type": "http.response.body", "body": body})
            return
        await self._stream(
            receive, send, {"type": "http.response.body", "body": PIECE, "more_body": True}
        )

    async def _stream(self, receive: Receive, send: Send, piece: Message) -> None:
        streaming = asyncio.create_task(repeat(send, piece))
        assert (await receive())["type"].endswith(".disconnect")
        streaming.cancel()
        self.left.set()


async def repeat(send: Send, piece: Message) -> None:
    """Piece after piece."""
    while True:
        await send(piece)


@pytest.fixture(autouse=True)
def _limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uvicorn as Chameleon's hook leaves it."""
    monkeypatch.setattr(uvicorn.Config, "load", limiting(uvicorn.Config.load))


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("path", ["stream", "long", "socket"])
def test_who_takes_nothing_is_left(path: str, http: str, caplog: pytest.LogCaptureFixture) -> None:
    """A stream hears that its client has gone, a websocket too; of a long answer nothing is kept. Others are answered."""
    pytest.importorskip("websockets" if path == "socket" else http)

    async def main() -> None:
        app = UnreadApp(0.2)
        async with served(app, http=http, timeout_graceful_shutdown=0) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            _, stuck = await asyncio.open_connection("127.0.0.1", port, limit=1)
            stuck.write(((SOCKET if path == "socket" else ASKED) % path).encode())
            connections = server.server_state.connections
            while len(connections) > 1 or f"/{path}" not in app.asked:
                writer.write((ASKED % "").encode())
                assert b"200" in await reader.readuntil(b"!")
            if path != "long":
                await app.left.wait()
            stuck.close()
            writer.close()

    caplog.set_level("INFO", "vllm")
    asyncio.run(asyncio.wait_for(main(), 120))
    (line,) = (r.getMessage() for r in caplog.records if "took nothing" in r.getMessage())
    assert "for 0.2 s" in line
    assert not [record for record in caplog.records if record.exc_info]


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.usefixtures("hooked")
def test_the_server_that_vllm_builds_keeps_to_the_setting(caplog: pytest.LogCaptureFixture) -> None:
    """From `serving.send_timeout_s` to the end of the connection, with all that stands before its routes."""
    fastapi = pytest.importorskip("fastapi")
    serving = {"send_timeout_s": 0.2}
    args = SimpleNamespace(
        scheduler_cls=SCHEDULER, additional_config={"chameleon": {"serving": serving}}
    )
    app, ended = fastapi.FastAPI(), asyncio.Event()
    app.state.args = args
    with_routes(lambda _: None)(app)

    async def pieces() -> AsyncIterator[bytes]:
        try:
            while True:
                yield PIECE
                await asyncio.sleep(0)  # as whoever waits for an engine lets others have their turn
        finally:
            ended.set()

    app.get("/stream")(lambda: fastapi.responses.StreamingResponse(pieces()))

    async def main() -> None:
        async with served(app, timeout_graceful_shutdown=0) as (_, port):
            _, stuck = await asyncio.open_connection("127.0.0.1", port, limit=1)
            stuck.write((ASKED % "stream").encode())
            await ended.wait()
            stuck.close()

    caplog.set_level("INFO", "vllm")
    asyncio.run(asyncio.wait_for(main(), 120))
    assert 1 == sum("took nothing for 0.2 s" in r.getMessage() for r in caplog.records)


@dataclass
class UnreadConnection:
    """Of uvicorn's protocol and its transport what is looked at, over a socket without anything in it."""

    socket: Any
    buffered: int = 1000
    is_ended: bool = False
    client: tuple[str, int] = ("127.0.0.1", 1)

    @property
    def transport(self) -> "UnreadConnection":
        """It is both."""
        return self

    def get_write_buffer_size(self) -> int:
        """As asyncio tells it."""
        return self.buffered

    def get_extra_info(self, name: str) -> Any:
        """As asyncio tells it."""
        return getattr(self, name)

    def abort(self) -> None:
        """As asyncio ends it."""
        self.is_ended = True


def test_who_takes_a_little_now_and_then_is_waited_for() -> None:
    """However long; the time begins anew with each byte."""
    with socket.socket() as empty:
        connection = UnreadConnection(empty)
        assert not any(asyncio.run(looked_at(connection)))
    assert connection.is_ended


async def looked_at(connection: "UnreadConnection") -> list[bool]:
    """Whether it is ended after each look at one that takes something in time, and then no more."""
    unread, ended = UnreadAnswer(connection, 3600.0), []
    for look in range(3 * LOOKS):
        connection.buffered -= look % (LOOKS - 1) == 0
        unread.look()
        ended.append(connection.is_ended)
    for _ in range(LOOKS):
        unread.look()
    unread.forget()
    return ended


@pytest.mark.parametrize("app", [UnreadApp(0.0), lambda: None])
def test_without_a_limit_connections_are_uvicorns(app: Any) -> None:
    """So are those of servers that are not ours."""
    config = uvicorn.Config(app, http="h11", lifespan="off")
    config.load()
    assert "uvicorn.protocols.http.h11_impl" == config.http_protocol_class.__module__
