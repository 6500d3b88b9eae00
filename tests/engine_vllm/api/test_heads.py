"""The head of a request that does not come."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.api.body import Message, Receive, Send
from chameleon_lora.engine_vllm.api.heads import LIMIT, limiting
from tests.engine_vllm.http_server import served

uvicorn = pytest.importorskip("uvicorn")
ASKED = b"GET /%s HTTP/1.1\r\nHost: x\r\n\r\n"
PARTS = {"nothing": b"", "half a line": b"GET /", "half": b"GET / HTTP/1.1\r\nHost: x\r\n"}
HEADERS = [(b"content-length", b"1")]
START: Message = {"type": "http.response.start", "status": 200, "headers": HEADERS}


class WaitingApp:
    """Answers in a word; what asks for /late gets it when that is let go, and a websocket an echo."""

    def __init__(self, limit_s: float) -> None:
        self.state = SimpleNamespace(**{LIMIT: limit_s})
        self.let_go = asyncio.Event()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """As ASGI's."""
        if scope["type"] == "websocket":
            await receive()
            await send({"type": "websocket.accept"})
            message = await receive()
            await send({"type": "websocket.send", "text": message["text"]})
            return
        if scope["path"] == "/late":
            await self.let_go.wait()
        await send(START)
        await send({"type": "http.response.body", "body": b"!"})


@pytest.fixture(autouse=True)
def _limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uvicorn as Chameleon's hook leaves it."""
    monkeypatch.setattr(uvicorn.Config, "load", limiting(uvicorn.Config.load))


async def is_cut_off(port: int, *parts: bytes) -> bool:
    """Whether the server ends a connection on which these came, in time."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    for part in parts:
        writer.write(part)
        if part.endswith(b"\r\n\r\n"):
            await reader.readuntil(b"!")
    rest = await reader.read()
    writer.close()
    return rest == b""


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("part", PARTS)
def test_who_does_not_finish_a_head_is_cut_off(part: str, http: str) -> None:
    """In the first request of a connection and in a later one; whose head came is waited for, and so is its answer."""
    pytest.importorskip(http)

    async def main() -> None:
        app = WaitingApp(0.2)
        async with served(app, http=http) as (_, port):
            reader, writer = await asyncio.open_connection("127.0.0.1", port)
            writer.write(ASKED % b"late")
            assert await is_cut_off(port, PARTS[part])
            if part != "nothing":  # then it is idle, which uvicorn has a limit for
                assert await is_cut_off(port, ASKED % b"", PARTS[part])
            app.let_go.set()
            assert b"200" in await reader.readuntil(b"!")
            assert await is_cut_off(port, PARTS[part])
            writer.write(ASKED % b"")  # it was idle for longer than that
            assert b"200" in await reader.readuntil(b"!")
            writer.close()

    asyncio.run(asyncio.wait_for(main(), 120))


@pytest.mark.parametrize("http", ["h11", "httptools"])
def test_a_websocket_has_had_its_head(http: str) -> None:
    """And may be silent for longer."""
    pytest.importorskip(http)
    client: Any = pytest.importorskip("websockets.asyncio.client")

    async def main() -> None:
        async with (
            served(WaitingApp(0.2), http=http) as (_, port),
            client.connect(f"ws://127.0.0.1:{port}/socket") as connection,
        ):
            assert await is_cut_off(port)
            await connection.send("there")
            assert "there" == await connection.recv()

    asyncio.run(asyncio.wait_for(main(), 120))


def test_without_a_limit_connections_are_uvicorns() -> None:
    """So are those of servers that are not ours."""
    config = uvicorn.Config(lambda: None, http="h11", lifespan="off")
    config.load()
    assert "uvicorn.protocols.http.h11_impl" == config.http_protocol_class.__module__
