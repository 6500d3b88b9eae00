"""Faults of the disk that adapters lie on."""

import asyncio
from functools import partial

from chameleon_lora.adapters.header import WEIGHTS_NAME
from faults.client import now_s, until
from faults.context import OTHER, SEEDS, TOKENS, VICTIM, FaultContext
from faults.fault import EITHER, RIGHT, Fault, FaultOutcome, first_error
from faults.greedy_request import GreedyRequest, RequestEnd

STALL_S = 10.0


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
    try:
        recovery_s = await until(partial(context.is_right, name, VICTIM), limit_s=30.0)
    except TimeoutError:
        recovery_s = None
    await context.client.unload(name)
    return FaultOutcome(ends, recovery_s, first_error(replies))


FAULTS = (
    Fault("disk stalls for 10 s", stall, RIGHT),
    Fault("disk fails with EIO", fail, EITHER),
)
