"""A client that takes nothing of its answer, and one that is slow."""

import asyncio
import socket
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.api.body import Message, Receive, Send
from chameleon_lora.engine_vllm.api.unread import LIMIT, LOOKS, UnreadAnswer, limiting

uvicorn = pytest.importorskip("uvicorn")
PIECE = b"x" * 65536
ASKED = "GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
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
        await send(START)
        if scope["path"] != "/stream":
            body = PIECE * 1024 if scope["path"] == "/long" else b"!"
            await send({"type": "http.response.body", "body": body})
            return
        streaming = asyncio.create_task(stream(send))
        assert "http.disconnect" == (await receive())["type"]
        streaming.cancel()
        self.left.set()


async def stream(send: Send) -> None:
    """Piece after piece."""
    while True:
        await send({"type": "http.response.body", "body": PIECE, "more_body": True})


@pytest.fixture(autouse=True)
def _limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uvicorn as Chameleon's hook leaves it."""
    monkeypatch.setattr(uvicorn.Config, "load", limiting(uvicorn.Config.load))


@asynccontextmanager
async def served(app: UnreadApp, http: str) -> AsyncIterator[tuple[Any, int]]:
    """A real server of the app, and its port."""
    config = uvicorn.Config(
        app, log_config=None, lifespan="off", http=http, timeout_graceful_shutdown=0
    )
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server.serve([listening]))
        yield server, listening.getsockname()[1]
        server.should_exit = True
        await task


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("path", ["stream", "long"])
def test_who_takes_nothing_is_left(path: str, http: str, caplog: pytest.LogCaptureFixture) -> None:
    """A stream hears that its client has gone; of a long answer nothing is kept. Others are answered."""
    pytest.importorskip(http)

    async def main() -> None:
        app = UnreadApp(0.2)
        async with served(app, http) as (server, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            _, stuck = await asyncio.open_connection("127.0.0.1", port, limit=1)
            stuck.write((ASKED % path).encode())
            connections = server.server_state.connections
            while len(connections) > 1 or f"/{path}" not in app.asked:
                writer.write((ASKED % "").encode())
                assert b"200" in await reader.readuntil(b"!")
            if path == "stream":
                await app.left.wait()
            stuck.close()
            writer.close()

    caplog.set_level("INFO", "vllm")
    asyncio.run(asyncio.wait_for(main(), 120))
    (line,) = (r.getMessage() for r in caplog.records if "took nothing" in r.getMessage())
    assert "for 0.2 s" in line
    assert not [record for record in caplog.records if record.exc_info]


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
