"""Ends the connection of a client that takes nothing of its answer, as one that has left without a word.

Uvicorn waits for such a client without end: before each next piece of a stream or message of a websocket, and
with a long answer that it was given as a whole. What it has left to send is looked at, in its own buffer and in the system's: a
client that takes a little now and then is slow, and is waited for.
"""

import asyncio
import fcntl
import logging
import sys
import termios
from collections.abc import Callable
from typing import Any

LIMIT = "chameleon_send_timeout_s"  # of an app's state: what serving.send_timeout_s says
LOOKS = 10  # in that time
_logger = logging.getLogger(f"vllm.{__name__}")


class UnreadAnswer:
    """What waits for a client whose connection is full. Owner: the connection, until it takes more or is lost."""

    def __init__(self, connection: Any, limit_s: float) -> None:
        self._connection, self._limit_s = connection, limit_s
        self._left_bytes, self._idle_looks = _left_bytes(connection.transport), 0
        self._wait()

    def forget(self) -> None:
        """It is looked at no more."""
        self._timer.cancel()

    def look(self) -> None:
        """Afterwards the connection is ended, if its client took nothing in all of the time."""
        left_bytes = _left_bytes(self._connection.transport)
        self._idle_looks = self._idle_looks + 1 if left_bytes >= self._left_bytes else 0
        self._left_bytes = left_bytes
        if self._idle_looks < LOOKS:
            self._wait()
            return
        told = (self._connection.client, self._limit_s, left_bytes)
        _logger.info("Client %s is left: it took nothing for %g s, and %d bytes wait for it", *told)
        self._connection.transport.abort()

    def _wait(self) -> None:
        loop = asyncio.get_running_loop()
        self._timer = loop.call_later(self._limit_s / LOOKS, self.look)


def _left_bytes(transport: Any) -> int:
    """That were written to a connection and have not arrived."""
    waiting: int = transport.get_write_buffer_size()
    try:
        sent = fcntl.ioctl(transport.get_extra_info("socket").fileno(), termios.TIOCOUTQ, bytes(4))
    except OSError:  # no such number of this kind of socket
        return waiting
    return waiting + int.from_bytes(sent, sys.byteorder)


def limiting(stock: Callable[..., None]) -> Callable[..., None]:
    """uvicorn.Config.load: the connections of a server of ours end in time."""

    def load(config: Any) -> None:
        stock(config)
        limit_s = getattr(getattr(config.app, "state", None), LIMIT, 0.0)
        if limit_s:
            config.http_protocol_class = _limited(config.http_protocol_class, limit_s)
        if limit_s and config.ws_protocol_class is not None:
            config.ws_protocol_class = _limited(config.ws_protocol_class, limit_s)

    return load


def _limited(protocol: Any, limit_s: float) -> Any:
    """Uvicorn's protocol, whose transport says when a connection is full, and when there is room again."""

    class Limited(protocol):
        unread: UnreadAnswer | None = None

        def pause_writing(self) -> None:
            super().pause_writing()
            self._forget()
            self.unread = UnreadAnswer(self, limit_s)

        def resume_writing(self) -> None:
            self._forget()
            super().resume_writing()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget()
            super().connection_lost(exc)

        def _forget(self) -> None:
            if self.unread is not None:
                self.unread.forget()
            self.unread = None

    return Limited
