"""One client of the server under test: completions, adapters, and the server's own pages."""

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

import aiohttp

from chameleon_lora.bench.client import Answer, stream_completion
from chameleon_lora.bench.server_pages import read_gauges
from chameleon_lora.metrics.errors import Cause
from faults.greedy_request import GreedyReply, GreedyRequest, reply_of

PATIENCE_S = 120.0  # what has not ended by then is given up, which counts as lost
POLL_S = 0.05


@dataclass(frozen=True, slots=True)
class Client:
    """Asks one server."""

    session: aiohttp.ClientSession
    url: str

    async def ask(self, asked: GreedyRequest, answer: Answer | None = None) -> GreedyReply:
        """The reply, whatever it is; `answer` shows it as it comes."""
        answer = answer or Answer()
        began_s = now_s()
        try:
            async with asyncio.timeout(PATIENCE_S):
                request = asked.request()
                await stream_completion(self.session, self.url, request, answer, now_s)
        except TimeoutError:
            answer.error = Cause.GIVEN_UP.error(f"no whole answer after {PATIENCE_S:g} s")
        return reply_of(asked, answer, began_s, now_s())

    async def ask_all(self, questions: Iterable[GreedyRequest]) -> list[GreedyReply]:
        """The replies to questions asked at once."""
        return list(await asyncio.gather(*map(self.ask, questions)))

    async def hang_up(self, asked: GreedyRequest, after_tokens: int) -> GreedyReply | None:
        """Takes so many tokens, or fewer if it is cancelled, then closes the connection.

        The reply if it ended before, None if it was cut.
        """
        answer = Answer()
        task = asyncio.create_task(self.ask(asked, answer))
        try:
            while len(answer.token_times_s) < after_tokens and not task.done():
                await asyncio.sleep(POLL_S)
            return task.result() if task.done() else None
        finally:
            task.cancel()
            await asyncio.gather(task, return_exceptions=True)

    async def load(self, name: str, path: Path) -> tuple[int, str]:
        """Status and text of POST /v1/load_lora_adapter."""
        return await self._post("load_lora_adapter", {"lora_name": name, "lora_path": str(path)})

    async def unload(self, name: str) -> tuple[int, str]:
        """Status and text of POST /v1/unload_lora_adapter."""
        return await self._post("unload_lora_adapter", {"lora_name": name})

    async def models(self) -> list[str]:
        """The names that GET /v1/models lists."""
        cards = json.loads(await self._page("/v1/models"))["data"]
        return [card["id"] for card in cards]

    async def is_healthy(self) -> bool:
        """Whether GET /health answers 200 within five seconds."""
        try:
            async with asyncio.timeout(5.0), self.session.get(f"{self.url}/health") as response:
                return response.status == HTTPStatus.OK
        except (aiohttp.ClientError, OSError, TimeoutError):
            return False

    async def is_idle(self) -> bool:
        """Whether nothing runs, nothing waits, and no request holds KV memory."""
        gauges = read_gauges(await self._page("/metrics"))
        return not (gauges.running or gauges.waiting or gauges.kv_usage)

    async def kv_usage(self) -> float:
        """Share of the KV cache that requests hold, in [0, 1]."""
        return read_gauges(await self._page("/metrics")).kv_usage or 0.0

    async def series(self) -> int:
        """How many lines GET /metrics has for values: each set of labels is one."""
        lines = (await self._page("/metrics")).splitlines()
        return sum(not line.startswith(b"#") for line in lines)

    async def metric(self, name: str) -> float:
        """The sum over all series of this name in GET /metrics."""
        lines = (await self._page("/metrics")).decode().splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))

    async def _page(self, path: str) -> bytes:
        async with self.session.get(f"{self.url}{path}") as response:
            return await response.read()

    async def _post(self, route: str, body: dict[str, Any]) -> tuple[int, str]:
        async with self.session.post(f"{self.url}/v1/{route}", json=body) as response:
            return response.status, await response.text()


def now_s() -> float:
    """The clock of all times in this package: monotonic, so that no jump moves it."""
    return time.monotonic()  # noqa: TID251 - an edge's own clock


async def until(
    is_so: Callable[[], Awaitable[bool]], limit_s: float = PATIENCE_S, every_s: float = POLL_S
) -> float:
    """How long it took until it was so, in seconds; TimeoutError above the limit."""
    began_s = now_s()
    async with asyncio.timeout(limit_s):
        while not await is_so():
            await asyncio.sleep(every_s)
    return now_s() - began_s
