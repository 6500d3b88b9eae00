"""Faults of clients: those who leave, and those who come all at once."""

import asyncio
import os
import random
import shutil
from functools import partial
from pathlib import Path

from faults.adapter_fixtures import SERVED
from faults.client import until
from faults.context import (
    ANY,
    LONG_SEED,
    LONG_TELLERS,
    PROBE_TOKENS,
    SEEDS,
    TOKENS,
    VICTIM,
    FaultContext,
)
from faults.fault import RIGHT, FaultOutcome, InflictedFault, first_error
from faults.greedy_request import GreedyRequest

LEAVERS = 500
STORM_ADAPTERS, STORM_REQUESTS = 10, 100
STALL_S = 0.2
REGISTERED, TRIED = 5_000, 20
LIST_EVERY_S = 1.0  # a list of so many is long
AT_ONCE = 2_000
LONG_STREAMS, LONG_LENGTHS = 24, (60, 300, 560)  # so unlike that no prediction fits


async def leave(context: FaultContext) -> FaultOutcome:
    """Five hundred streams are cut at their first token."""
    names = context.names
    questions = [GreedyRequest(names[i % len(names)], SEEDS[0], TOKENS) for i in range(LEAVERS)]
    replies = await asyncio.gather(*(context.client.hang_up(asked, 1) for asked in questions))
    ends = tuple(context.end(r, (SERVED.get(r.asked.model),)) for r in replies if r is not None)
    return FaultOutcome(ends, recovery_s=await until(partial(context.is_right, ANY, SERVED[ANY])))


async def leave_while_loading(context: FaultContext) -> FaultOutcome:
    """Requests for adapters that are being read are cut before their first token.

    Afterwards each of those adapters is served: none is stuck, no slot is lost.
    """
    offered = [await context.offered() for _ in range(STORM_ADAPTERS)]
    names = [name for name, _ in offered]
    leavers = [
        GreedyRequest(names[i % len(names)], SEEDS[0], TOKENS) for i in range(STORM_REQUESTS)
    ]
    with context.injector.stalling(f"{context.home}/", STALL_S):
        tasks = [asyncio.create_task(context.client.hang_up(asked, 1)) for asked in leavers]
        await asyncio.sleep(2 * STALL_S)
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
    replies = await context.client.ask_all(GreedyRequest(name, SEEDS[1], TOKENS) for name in names)
    ends = tuple(context.end(reply, (VICTIM,)) for reply in replies)
    recovery_s = await until(partial(context.is_right, names[0], VICTIM))
    for name in names:
        await context.client.unload(name)
    return FaultOutcome(ends, recovery_s, first_error(replies))


async def register(context: FaultContext) -> FaultOutcome:
    """Five thousand adapters appear in the served folder, and go again; some are asked for."""
    assert context.adapters is not None
    names = [f"many-{number:04d}" for number in range(REGISTERED)]
    source = context.fixtures.path(VICTIM)
    await asyncio.to_thread(_link_all, source, context.adapters, names)
    tried = random.Random(0).sample(names, TRIED)
    replies = await context.client.ask_all(
        GreedyRequest(name, SEEDS[0], PROBE_TOKENS) for name in tried
    )
    ends = tuple(context.end(reply, (VICTIM,)) for reply in replies)
    all_there = partial(_lists, context, len(context.names) + REGISTERED)
    await until(all_there, every_s=LIST_EVERY_S)
    for name in names:
        await asyncio.to_thread(shutil.rmtree, context.adapters / name)
    gone = partial(_lists, context, len(context.names))
    return FaultOutcome(ends, await until(gone, every_s=LIST_EVERY_S), first_error(replies))


async def come_at_once(context: FaultContext) -> FaultOutcome:
    """Two thousand requests at once, for all adapters, over a small KV cache."""
    names = context.names
    questions = [
        GreedyRequest(names[i % len(names)], SEEDS[i % 2], 4 + i % 5) for i in range(AT_ONCE)
    ]
    replies = await context.client.ask_all(questions)
    ends = tuple(context.end(reply, (SERVED.get(reply.asked.model),)) for reply in replies)
    recovery_s = await until(partial(context.is_right, ANY, SERVED[ANY]))
    return FaultOutcome(ends, recovery_s, first_error(replies))


async def fill_memory(context: FaultContext) -> FaultOutcome:
    """Long answers that do not fit together: vLLM preempts, and all come to their end."""
    tellers = [name for name in LONG_TELLERS if name in context.names]
    questions = [
        GreedyRequest(tellers[i % len(tellers)], LONG_SEED, LONG_LENGTHS[i % len(LONG_LENGTHS)])
        for i in range(LONG_STREAMS)
    ]
    before = await context.client.metric("vllm:num_preemptions_total")
    replies = await context.client.ask_all(questions)
    preemptions = await context.client.metric("vllm:num_preemptions_total") - before
    ends = tuple(context.end(reply, (SERVED.get(reply.asked.model),)) for reply in replies)
    recovery_s = await until(partial(context.is_right, ANY, SERVED[ANY]))
    said = first_error(replies) or f"{preemptions:.0f} preemptions"
    return FaultOutcome(ends, recovery_s, said)


def _link_all(source: Path, root: Path, names: list[str]) -> None:
    """Folders that share one adapter's files."""
    for name in names:
        staged = root / f".{name}"
        staged.mkdir()
        for file in source.iterdir():
            os.link(file, staged / file.name)
        staged.rename(root / name)


async def _lists(context: FaultContext, count: int) -> bool:
    return count == len(await context.client.models())


FAULTS = (
    InflictedFault("500 clients leave in mid-stream", leave, RIGHT, silence_s=None),
    InflictedFault("clients leave during loads", leave_while_loading, RIGHT, silence_s=None),
    InflictedFault("5,000 adapters registered", register, RIGHT, needs_folder=True),
    InflictedFault("2,000 requests at once", come_at_once, RIGHT, silence_s=None),
    InflictedFault("KV cache full, preemptions", fill_memory, RIGHT, silence_s=None),
)
