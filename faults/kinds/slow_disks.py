"""Faults of the disk that adapters lie on, and of the one for temporary files."""

import asyncio
import errno
import shutil
import tempfile
from functools import partial

from chameleon_lora.adapters.header import WEIGHTS_NAME
from faults.adapter_fixtures import SERVED
from faults.client import now_s, until
from faults.context import ANY, OTHER, SEEDS, TOKENS, VICTIM, FaultContext
from faults.fault import EITHER, RIGHT, FaultOutcome, InflictedFault, first_error
from faults.greedy_request import GreedyRequest, RequestEnd

STALL_S = 10.0
AWAY_S = 4.0  # a server looks at its folder once a second
RECOVERY_LIMIT_S = 30.0
TEMPORARY = "chameleon-"  # what the server's own files are called there


async def stall(context: FaultContext) -> FaultOutcome:
    """One adapter's disk hangs; another adapter, which is on no disk that hangs, is read meanwhile.

    That other one must be answered while the disk still hangs: else it counts as lost.
    """
    bystander, _ = await context.offered(OTHER)
    name, path = await context.offered()
    with context.injector.stalling(str(path / WEIGHTS_NAME), STALL_S):
        began_s = now_s()
        doomed = asyncio.create_task(context.client.ask(GreedyRequest(name, SEEDS[0], TOKENS)))
        await asyncio.sleep(STALL_S / 10)
        beside = await context.client.ask(GreedyRequest(bystander, SEEDS[0], TOKENS))
        is_late = now_s() - began_s > STALL_S
        reply = await doomed
    ended_s = now_s()
    ends = (
        context.end(reply, (VICTIM,)),
        RequestEnd.LOST if is_late else context.end(beside, (OTHER,)),
    )
    for each in (name, bystander):
        await context.client.unload(each)
    said = "another adapter waited for the disk too" if is_late else first_error([reply, beside])
    return FaultOutcome(ends, max(0.0, reply.ended_s - ended_s), said)


async def fail(context: FaultContext) -> FaultOutcome:
    """Reads of one adapter fail with EIO; the disk is well again afterwards."""
    name, path = await context.offered()
    questions = [GreedyRequest(name, seed, TOKENS) for seed in SEEDS]
    with context.injector.failing(str(path / WEIGHTS_NAME)):
        replies = await context.client.ask_all(questions)
    ends = tuple(context.end(reply, (VICTIM,)) for reply in replies)
    recovery_s = await _recovery_s(context, name)
    await context.client.unload(name)
    return FaultOutcome(ends, recovery_s, first_error(replies))


async def fail_at_a_look(error: int, context: FaultContext) -> FaultOutcome:
    """A served adapter is replaced by its like, and cannot be read while the server looks at it.

    It is served again once that is over, though nobody touches it any more.
    """
    assert context.adapters is not None
    name = context.fresh_name()
    path = context.fixtures.place(VICTIM, context.adapters / name)
    await until(partial(context.is_right, name, VICTIM), RECOVERY_LIMIT_S)
    with context.injector.failing(str(path / WEIGHTS_NAME), error):
        context.fixtures.replace_weights(VICTIM, path)
        await asyncio.sleep(AWAY_S)
        replies = await context.client.ask_all(GreedyRequest(name, s, TOKENS) for s in SEEDS)
    ends = tuple(context.end(reply, (VICTIM,)) for reply in replies)
    recovery_s = await _recovery_s(context, name)
    shutil.rmtree(path)
    return FaultOutcome(ends, recovery_s, first_error(replies))


async def unmount(context: FaultContext) -> FaultOutcome:
    """The served folder is an empty one for a while, as where its disk was mounted; then it is back.

    What is in memory, or in the server's own disk cache, is served meanwhile.
    """
    assert context.adapters is not None
    away = context.adapters.rename(context.adapters.with_name("away"))
    context.adapters.mkdir()
    try:
        await asyncio.sleep(AWAY_S)
        replies = await context.client.ask_all(
            GreedyRequest(name, SEEDS[0], TOKENS) for name in SERVED
        )
    finally:
        context.adapters.rmdir()
        away.rename(context.adapters)
    ends = tuple(context.end(reply, (SERVED[reply.asked.model],)) for reply in replies)
    return FaultOutcome(ends, await _recovery_s(context, ANY), first_error(replies))


async def fill(context: FaultContext) -> FaultOutcome:
    """Nothing more fits on the disk for temporary files, while adapters are read and packed."""
    offered = [(*await context.offered(number), number) for number in (VICTIM, OTHER)]
    with context.injector.failing(f"{tempfile.gettempdir()}/{TEMPORARY}", errno.ENOSPC):
        replies = await context.client.ask_all(
            GreedyRequest(name, SEEDS[0], TOKENS) for name, _, _ in offered
        )
    ends = tuple(
        context.end(reply, (number,))
        for reply, (_, _, number) in zip(replies, offered, strict=True)
    )
    recovery_s = await _recovery_s(context, offered[0][0])
    for name, _, _ in offered:
        await context.client.unload(name)
    return FaultOutcome(ends, recovery_s, first_error(replies))


async def _recovery_s(context: FaultContext, name: str) -> float | None:
    """Until the adapter, one of the victim's weights or a served one, is answered right."""
    number = SERVED.get(name, VICTIM)
    try:
        return await until(partial(context.is_right, name, number), RECOVERY_LIMIT_S)
    except TimeoutError:
        return None


FAULTS = (
    InflictedFault("disk stalls for 10 s", stall, RIGHT),
    InflictedFault("disk fails with EIO", fail, EITHER),
    InflictedFault("one EIO", partial(fail_at_a_look, errno.EIO), EITHER, needs_folder=True),
    InflictedFault(
        "out of descriptors", partial(fail_at_a_look, errno.EMFILE), EITHER, needs_folder=True
    ),
    InflictedFault("folder unmounted", unmount, RIGHT, needs_folder=True),
    InflictedFault("disk full", fill, RIGHT),
)
