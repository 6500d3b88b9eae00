"""Faults of clients that hold a connection and do not do their part."""

import asyncio
import contextlib
import socket
from collections.abc import AsyncIterator
from functools import partial

from faults.adapter_fixtures import SERVED
from faults.client import until
from faults.context import ANY, LONG_SEED, LONG_TOKENS, FaultContext
from faults.fault import TOLD, FaultOutcome, InflictedFault
from faults.greedy_request import GreedyRequest, RequestEnd

PEERS = 20
TOLD_LIMIT_S = 60.0  # a server that waits 30 s for a body has said so by then
UNREAD_S = 6.0
SMALL_BUFFER_BYTES = 4096


async def leave_bodies_unfinished(context: FaultContext) -> FaultOutcome:
    """Twenty clients announce a body that never comes; each is told so, and sent away."""
    async with contextlib.AsyncExitStack() as stack:
        waiting = [
            await stack.enter_async_context(unfinished_body(context.client.url))
            for _ in range(PEERS)
        ]
        lines = await asyncio.gather(*map(_told, waiting))
    ends = tuple(RequestEnd.TOLD if b" 408 " in line else RequestEnd.LOST for line in lines)
    recovery_s = await until(partial(context.is_right, ANY, SERVED[ANY]))
    return FaultOutcome(ends, recovery_s, min(lines).decode().strip())


async def never_read(context: FaultContext) -> FaultOutcome:
    """Twenty clients ask for long streams and read nothing of them; then they leave."""
    with contextlib.ExitStack() as stack:
        for name in (context.names * PEERS)[:PEERS]:
            stack.enter_context(_unread_stream(context.client.url, name))
        await asyncio.sleep(UNREAD_S)
    return FaultOutcome(recovery_s=await until(partial(context.is_right, ANY, SERVED[ANY])))


@contextlib.asynccontextmanager
async def unfinished_body(url: str) -> AsyncIterator[asyncio.StreamReader]:
    """A request that the server has begun to read, and whose rest does not come; its answers."""
    reader, writer = await asyncio.open_connection(*_address(url))
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    )
    await reader.readline()  # that it may go on
    try:
        yield reader
    finally:
        writer.close()


async def _told(reader: asyncio.StreamReader) -> bytes:
    """The status line of the answer; nothing if there is none in time."""
    line = b""
    with contextlib.suppress(TimeoutError, OSError):
        async with asyncio.timeout(TOLD_LIMIT_S):
            while not line.startswith(b"HTTP/") and not reader.at_eof():
                line = await reader.readline()
    return line


def _unread_stream(url: str, name: str) -> socket.socket:
    """One that is sent to a client with a small buffer, which takes nothing out of it."""
    call = GreedyRequest(name, LONG_SEED, LONG_TOKENS).request().call()
    peer = socket.socket()
    peer.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, SMALL_BUFFER_BYTES)
    peer.connect(_address(url))
    peer.sendall(
        b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: %d\r\n\r\n%s" % (call.path.encode(), len(call.body), call.body)
    )
    return peer


def _address(url: str) -> tuple[str, int]:
    host, _, port = url.rpartition("/")[2].partition(":")
    return host, int(port)


FAULTS = (
    InflictedFault("unfinished bodies", leave_bodies_unfinished, TOLD),
    InflictedFault("peers that never read", never_read, silence_s=None),
)
