"""Faults of the disk that adapters lie on."""

import asyncio
from functools import partial

from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.faults.asked import Asked, End
from chameleon_lora.faults.client import now_s, until
from chameleon_lora.faults.fault import EITHER, RIGHT, Fault, Outcome, first_error
from chameleon_lora.faults.scene import OTHER, SEEDS, TOKENS, VICTIM, Scene

STALL_S = 10.0


async def stall(scene: Scene) -> Outcome:
    """One adapter's disk hangs; another adapter, which is on no disk that hangs, is read meanwhile.

    That other one must be answered while the disk still hangs: else it counts as lost.
    """
    bystander, _ = await scene.offered(OTHER)
    name, path = await scene.offered()
    with scene.faulty.stalling(str(path / WEIGHTS_NAME), STALL_S):
        began_s = now_s()
        doomed = asyncio.create_task(scene.client.ask(Asked(name, SEEDS[0], TOKENS)))
        await asyncio.sleep(STALL_S / 10)
        beside = await scene.client.ask(Asked(bystander, SEEDS[0], TOKENS))
        is_late = now_s() - began_s > STALL_S
        reply = await doomed
    ended_s = now_s()
    ends = (scene.end(reply, (VICTIM,)), End.LOST if is_late else scene.end(beside, (OTHER,)))
    for each in (name, bystander):
        await scene.client.unload(each)
    said = "another adapter waited for the disk too" if is_late else first_error([reply, beside])
    return Outcome(ends, max(0.0, reply.ended_s - ended_s), said)


async def fail(scene: Scene) -> Outcome:
    """Reads of one adapter fail with EIO; the disk is well again afterwards."""
    name, path = await scene.offered()
    questions = [Asked(name, seed, TOKENS) for seed in SEEDS]
    with scene.faulty.failing(str(path / WEIGHTS_NAME)):
        replies = await scene.client.ask_all(questions)
    ends = tuple(scene.end(reply, (VICTIM,)) for reply in replies)
    try:
        recovery_s = await until(partial(scene.is_right, name, VICTIM), limit_s=30.0)
    except TimeoutError:
        recovery_s = None
    await scene.client.unload(name)
    return Outcome(ends, recovery_s, first_error(replies))


FAULTS = (
    Fault("disk stalls for 10 s", stall, RIGHT),
    Fault("disk fails with EIO", fail, EITHER),
)
