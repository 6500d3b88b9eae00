"""A replay, and beside it what the server says of itself once a second."""

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from http import HTTPStatus
from typing import TypeVar

import aiohttp

from chameleon_lora.bench.client import Answer, Clock
from chameleon_lora.bench.replay import OnProgress, Target, Watcher, open_session, replay
from chameleon_lora.bench.server_pages import (
    Gauges,
    StatePage,
    read_arrivals,
    read_gauges,
    read_state,
    residencies,
)
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.metrics.sample import Sample
from chameleon_lora.workload.requests import TimedRequest

Page = TypeVar("Page")

METRICS, STATE, ARRIVALS = "/metrics", "/chameleon/state", "/chameleon/arrivals"


@dataclass(frozen=True, slots=True)
class PollSettings:
    """How a server is looked at.

    Attributes:
        every_s: from one look to the next.
        limit_s: what takes longer is left out.
    """

    every_s: float = 1.0
    limit_s: float = 5.0


ONE_A_SECOND = PollSettings()


@dataclass(frozen=True, slots=True)
class WatchedRun:
    """What the client saw and what the server told.

    Attributes:
        records: by index; with residency where the server tells arrivals.
        samples: by time; empty if the server tells nothing.
    """

    records: tuple[RequestRecord, ...]
    samples: tuple[Sample, ...]


async def watched_replay(
    target: Target,
    requests: Sequence[TimedRequest],
    *,
    patience_s: float = 120.0,
    on_progress: OnProgress | None = None,
    progress_every_s: float = 5.0,
    polling: PollSettings = ONE_A_SECOND,
    stop: asyncio.Event | None = None,
) -> WatchedRun:
    """`replay`, watched. Pages that are slow, broken or missing leave the run as it is.

    Before the first request and after the last, one page is waited for, for `polling.limit_s` at most.
    """
    ids: dict[int, str] = {}

    def keep_id(request: TimedRequest, answer: Answer) -> None:
        if answer.id is not None:
            ids[request.index] = answer.id

    async with open_session(target.headers) as session:
        watch = _Watch(session, target.base_url, polling.limit_s)
        await watch.look_at_arrivals(is_kept=False)
        records = await replay(
            target,
            requests,
            patience_s=patience_s,
            on_progress=on_progress,
            progress_every_s=progress_every_s,
            watcher=Watcher(
                lambda clock: watch.look_again_and_again(clock, polling.every_s), keep_id
            ),
            stop=stop,
        )
        await watch.look_at_arrivals()
    tiers = residencies(watch.arrivals, frozenset(ids.values()))
    told = (
        replace(record, residency=tiers.get(ids.get(record.index, "")))
        if record.adapter is not None
        else record
        for record in records
    )
    return WatchedRun(tuple(told), tuple(watch.samples))


class _Watch:
    """What a server has told so far; lives as long as the call of `watched_replay`.

    A page that is not there is asked for once.
    """

    def __init__(self, session: aiohttp.ClientSession, base_url: str, limit_s: float) -> None:
        self.samples: list[Sample] = []
        self.arrivals: list[tuple[str, str]] = []
        self._session = session
        self._base_url = base_url
        self._limit_s = limit_s
        self._missing: set[str] = set()
        self._arrivals_next = 0

    async def look_again_and_again(self, clock: Clock, every_s: float) -> None:
        """Looks until it is cancelled, at whole multiples of `every_s`; a slow look costs the next."""
        while True:
            at_s = clock()
            await asyncio.gather(self._look(at_s), self.look_at_arrivals())
            await asyncio.sleep(every_s - clock() % every_s)

    async def look_at_arrivals(self, *, is_kept: bool = True) -> None:
        """Takes in the arrivals since the last look, or passes over them."""
        told = await self._ask(f"{ARRIVALS}?after={self._arrivals_next}", read_arrivals)
        if told is not None:
            self._arrivals_next = told.next
            if is_kept:
                self.arrivals += told.arrivals

    async def _look(self, at_s: float) -> None:
        """One sample, if the server tells anything at all."""
        gauges, state = await asyncio.gather(
            self._ask(METRICS, read_gauges), self._ask(STATE, read_state)
        )
        if gauges is not None or state is not None:
            self.samples.append(_sample(at_s, gauges, state))

    async def _ask(self, path: str, read: Callable[[bytes], Page]) -> Page | None:
        """The page, or None if it does not come, is not there, or says something else."""
        route = path.partition("?")[0]
        if route in self._missing:
            return None
        with contextlib.suppress(aiohttp.ClientError, OSError, ValueError):
            async with (
                asyncio.timeout(self._limit_s),
                self._session.get(f"{self._base_url}{path}") as response,
            ):
                if response.status == HTTPStatus.OK:
                    return read(await response.read())
                if response.status == HTTPStatus.NOT_FOUND:
                    self._missing.add(route)
        return None


def _sample(at_s: float, gauges: Gauges | None, state: StatePage | None) -> Sample:
    return Sample(
        at_s=at_s,
        running=gauges.running if gauges else None,
        waiting=gauges.waiting if gauges else None,
        kv_usage=gauges.kv_usage if gauges else None,
        lanes=state.lanes if state else (),
        cache_bytes=state.cache_bytes if state else None,
        lent_bytes=state.lent_bytes if state else None,
    )
