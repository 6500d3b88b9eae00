"""A server that hangs up between two requests, and one that drops what it has taken."""

import asyncio
import contextlib
from collections.abc import AsyncIterator
from typing import Any

import pytest

from chameleon_lora.bench.client import Answer, stream_completion
from chameleon_lora.bench.completion import CompletionRequest
from chameleon_lora.bench.replay import open_session

EVENTS = b'data: {"id":"c","choices":[{"text":"a"}]}\n\ndata: [DONE]\n\n'
HEAD = b"HTTP/1.1 200 OK\r\nContent-Type: text/event-stream\r\n"
ANSWER = b"%sContent-Length: %d\r\n\r\n%s" % (HEAD, len(EVENTS), EVENTS)
REQUEST = CompletionRequest("m", (1, 2), 1)
ENOUGH = 5


class HangingUp:
    """Answers the first request of each connection and drops the second unread, as uvicorn does whose
    keep-alive ran out while that one was on its way. From `drops_all` on it drops every request."""

    def __init__(self) -> None:
        self.connections = self.requests = 0
        self.tasks: list[asyncio.Task[Any] | None] = []
        self.drops_all = False

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection."""
        self.connections += 1
        self.tasks.append(asyncio.current_task())
        with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
            await self._take(reader)
            if not self.drops_all:
                writer.write(ANSWER)
                await writer.drain()
                await self._take(reader)
        writer.close()
        with contextlib.suppress(ConnectionError):
            await writer.wait_closed()

    async def _take(self, reader: asyncio.StreamReader) -> None:
        head = await reader.readuntil(b"\r\n\r\n")
        (length,) = (
            int(line.partition(b":")[2])
            for line in head.splitlines()
            if line.lower().startswith(b"content-length")
        )
        await reader.readexactly(length)
        self.requests += 1


@contextlib.asynccontextmanager
async def hanging_up() -> AsyncIterator[tuple[HangingUp, str]]:
    """Such a server, and where it listens."""
    server = HangingUp()
    listener = await asyncio.start_server(server.serve, "127.0.0.1", 0)
    async with listener:
        port = listener.sockets[0].getsockname()[1]
        yield server, f"http://127.0.0.1:{port}"
        await asyncio.gather(*filter(None, server.tasks))


async def ask(session: Any, url: str) -> str | None:
    """The error of one completion."""
    answer = Answer()
    await stream_completion(session, url, REQUEST, answer, lambda: 0.0)
    return answer.error


@pytest.mark.parametrize("reuses_connections", [True, False])
def test_a_request_that_met_a_closing_connection_is_not_lost(*, reuses_connections: bool) -> None:
    """It is sent again on a new one; a client that reuses none never meets it."""

    async def main() -> tuple[list[str | None], int]:
        async with (
            hanging_up() as (server, url),
            open_session(reuses_connections=reuses_connections) as session,
        ):
            errors = [await ask(session, url) for _ in range(ENOUGH)]
        return errors, server.requests

    errors, taken = asyncio.run(main())
    assert [None] * ENOUGH == errors
    assert taken == (ENOUGH + ENOUGH // 2 if reuses_connections else ENOUGH)


def test_a_server_that_drops_everything_is_asked_twice_at_most() -> None:
    """However many idle connections there are: the second time is on a connection of its own."""

    async def main() -> tuple[str | None, int]:
        async with hanging_up() as (server, url), open_session() as session:
            await asyncio.gather(*(ask(session, url) for _ in range(3)))
            server.drops_all = True
            before = server.requests
            return await ask(session, url), server.requests - before

    error, taken = asyncio.run(main())
    assert ("connection lost: ServerDisconnectedError: Server disconnected", 2) == (error, taken)


def test_a_request_that_is_dropped_on_a_new_connection_is_lost() -> None:
    """The server had it: once, and it is told as what it is."""

    async def main() -> tuple[list[str | None], int]:
        async with hanging_up() as (server, url), open_session() as session:
            first = await ask(session, url)
            server.drops_all = True
            return [first, await ask(session, url)], server.connections

    errors, connections = asyncio.run(main())
    assert [None, "connection lost: ServerDisconnectedError: Server disconnected"] == errors
    assert 2 == connections
