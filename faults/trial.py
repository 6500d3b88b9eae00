"""One fault under a steady load, and what became of every request."""

import asyncio
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, replace

import aiohttp
import psutil

from faults.client import now_s, until
from faults.context import FaultContext
from faults.fault import FaultOutcome, InflictedFault, first_error
from faults.greedy_request import GreedyReply, RequestEnd
from faults.load import SteadyLoad

STREAMS = 6
IDLE_LIMIT_S = 60.0
EXIT_LIMIT_S = 20.0


@dataclass(frozen=True, slots=True)
class FaultRow:
    """What one fault did.

    Attributes:
        in_flight: of the load, when it began.
        requests: of the load, and those that the fault concerned.
        lost: ended without a word, among all.
        wrong: ended with tokens that are not theirs, among all.
        disturbed: of the load: failed, or silent for too long.
        silent: of those, that ended right and were silent only.
        unexpected: that the fault concerned and that ended otherwise than they may.
        is_clean: the server is up, idle and holds no KV memory; or, where it could not go on, no
            process of it is left.
        exit_status: None while it runs.
    """

    fault: str
    in_flight: int
    requests: int
    lost: int
    wrong: int
    disturbed: int
    unexpected: int
    recovery_s: float | None
    is_clean: bool
    exit_status: int | None
    said: str
    silent: int = 0


HEAD = "| fault | in flight | requests | lost | wrong | disturbed | recovery, s | server after it | said |"
RULE = "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |"
SAID_CHARACTERS = 90


async def try_fault(fault: InflictedFault, context: FaultContext) -> FaultRow:
    """Inflicts it on a server whose load runs from before it until after it."""
    stops = fault.ends_server
    load = SteadyLoad(context.client, context.questions(), STREAMS, stops_when_told=stops)
    async with load.running():
        in_flight, inflicted_s = load.in_flight, now_s()
        outcome = await _inflicted(fault, context)
    is_clean = not fault.ends_server and await _is_clean(context)
    exit_status = None if is_clean else await asyncio.to_thread(_exit_status, context)
    is_clean = is_clean or (fault.ends_server and exit_status is not None)
    ends = map(load.end, load.replies)
    felt = [
        e
        for r, e in zip(load.replies, ends, strict=True)
        if _is_disturbed(r, e, fault, inflicted_s)
    ]
    row = _row(fault, outcome, load, (in_flight, len(felt)), is_clean, exit_status)
    return replace(row, silent=felt.count(RequestEnd.RIGHT))


async def _inflicted(fault: InflictedFault, context: FaultContext) -> FaultOutcome:
    """What came of it, also if it ended a server that it was not to end."""
    try:
        return await fault.inflict(context)
    except aiohttp.ClientError as error:
        return FaultOutcome(said=f"the server is gone: {error}")


def _row(
    fault: InflictedFault,
    outcome: FaultOutcome,
    load: SteadyLoad,
    counts: tuple[int, int],
    is_clean: bool,
    exit_status: int | None,
) -> FaultRow:
    ends = Counter([*outcome.ends, *map(load.end, load.replies)])
    bad = [reply for reply in load.replies if load.end(reply) is not RequestEnd.RIGHT]
    bad.sort(
        key=lambda reply: load.end(reply) in (RequestEnd.TOLD, RequestEnd.REFUSED)
    )  # the worst one first
    in_flight, disturbed = counts
    return FaultRow(
        fault=fault.name,
        in_flight=in_flight,
        requests=ends.total() - ends[RequestEnd.REFUSED],
        lost=ends[RequestEnd.LOST],
        wrong=ends[RequestEnd.WRONG],
        disturbed=disturbed,
        unexpected=sum(end not in fault.may_end for end in outcome.ends),
        recovery_s=outcome.recovery_s,
        is_clean=is_clean and outcome.recovery_s is not None,
        exit_status=exit_status,
        said=outcome.said or first_error(bad),
    )


def _is_disturbed(
    reply: GreedyReply, end: RequestEnd, fault: InflictedFault, inflicted_s: float
) -> bool:
    """Did this request of the load feel what it had no part in?"""
    if fault.ends_server:
        must_end_right = fault.drains and reply.began_s < inflicted_s
        return (
            end is not RequestEnd.RIGHT
            if must_end_right
            else end in (RequestEnd.LOST, RequestEnd.WRONG)
        )
    is_silent = fault.silence_s is not None and reply.silence_s > fault.silence_s
    return end is not RequestEnd.RIGHT or is_silent


async def _is_clean(context: FaultContext) -> bool:
    """Is the server up, and has all memory come back?"""
    try:
        await until(context.client.is_idle, IDLE_LIMIT_S)
    except (TimeoutError, OSError):
        return False
    return await context.client.is_healthy()


def _exit_status(context: FaultContext) -> int | None:
    """Of the server's first process, our child; None if it does not end."""
    try:
        status: int | None = context.process.wait(EXIT_LIMIT_S)
    except psutil.TimeoutExpired:
        status = None
    return status


def table(rows: Iterable[FaultRow]) -> str:
    """Rows as a table in Markdown."""
    return "\n".join([HEAD, RULE, *map(line, rows)])


def line(row: FaultRow) -> str:
    """One row of it."""
    recovery = "never" if row.recovery_s is None else f"{row.recovery_s:.1f}"
    after = "up" if row.is_clean else "**not well**"
    if row.exit_status is not None:
        after = f"exit status {row.exit_status}"
    cells = (row.fault, row.in_flight, row.requests, row.lost, row.wrong, row.disturbed, recovery)
    said = row.said.replace("|", "/").replace("\n", " ")[:SAID_CHARACTERS]
    return f"| {' | '.join(map(str, cells))} | {after} | {said} |"
