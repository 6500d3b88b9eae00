"""Ends the connection of a client that does not finish the head of a request: its first line and its headers.

Uvicorn waits for it without end, and a server has so many descriptors. Between two requests a connection has
uvicorn's own limit.
"""

import asyncio
from collections.abc import Callable
from typing import Any

LIMIT = "chameleon_head_s"  # of an app's state
HEAD_S = 60.0


def limiting(stock: Callable[..., None]) -> Callable[..., None]:
    """uvicorn.Config.load: on a server of ours a head comes in time."""

    def load(config: Any) -> None:
        stock(config)
        limit_s = getattr(getattr(config.app, "state", None), LIMIT, 0.0)
        if limit_s:
            config.http_protocol_class = _limited(config.http_protocol_class, limit_s)

    return load


def _limited(protocol: Any, limit_s: float) -> Any:
    """Uvicorn's protocol, which waits for all of a head for so long, however slowly it comes."""

    class TimedHead(protocol):
        head_timer: asyncio.TimerHandle | None = None

        def connection_made(self, transport: Any) -> None:
            super().connection_made(transport)
            self._time_head()

        def data_received(self, data: bytes) -> None:
            super().data_received(data)
            self._time_head()

        def connection_lost(self, exc: Exception | None) -> None:
            self._forget_head()
            super().connection_lost(exc)

        def _time_head(self) -> None:
            is_awaited = self.cycle is None or self.cycle.response_complete
            if (
                not is_awaited or self.transport.get_protocol() is not self
            ):  # it is a websocket by now
                self._forget_head()
            elif self.head_timer is None:
                self.head_timer = self.loop.call_later(limit_s, self.transport.close)

        def _forget_head(self) -> None:
            if self.head_timer is not None:
                self.head_timer.cancel()
            self.head_timer = None

    return TimedHead
