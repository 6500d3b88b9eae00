"""Faults of the server's processes and of its clock."""

import asyncio
import os
import signal
from functools import partial

import psutil

from faults.adapter_fixtures import SERVED
from faults.client import until
from faults.context import ANY, FaultContext
from faults.fault import RIGHT, FaultOutcome, InflictedFault
from faults.kinds.rude_clients import unfinished_body

ENGINE, WORKER = "VLLM::Engine", "VLLM::Worker"  # as vLLM names its processes
EXIT_LIMIT_S = 60.0
JUMPS_S = (86_400.0, -86_400.0)
JUMP_LASTS_S = 2.0


async def kill(title: str, context: FaultContext) -> FaultOutcome:
    """One of its processes is killed; all others must end too, and say so."""
    family = context.process.children(recursive=True)
    victims = [child for child in family if title in " ".join(child.cmdline())]
    if not victims:
        raise RuntimeError(f"the server has no process {title!r}")
    victims[-1].send_signal(signal.SIGKILL)
    return await _ended([context.process, *family])


async def kill_first(context: FaultContext) -> FaultOutcome:
    """The API server is killed, as for want of memory: nobody can be told, and the others must end."""
    family = context.process.children(recursive=True)
    context.process.kill()
    return await _ended([context.process, *family])


async def end(number: signal.Signals, context: FaultContext, *, tells_all: bool) -> FaultOutcome:
    """It is told to end with streams in flight: they end whole, and then it does.

    Beside them a client has announced a body that never comes, which may not hold the end up. A terminal
    tells all processes of a server, as systemd does unless told otherwise; a container the first.
    """
    family = context.process.children(recursive=True)
    async with unfinished_body(context.client.url):
        if tells_all:
            os.killpg(context.process.pid, number)
        else:
            context.process.send_signal(number)
        return await _ended([context.process, *family])


async def jump(context: FaultContext) -> FaultOutcome:
    """The wall clock jumps a day ahead, and a day back."""
    for seconds in JUMPS_S:
        with context.injector.clock_jumped(seconds):
            await asyncio.sleep(JUMP_LASTS_S)
    return FaultOutcome(recovery_s=await until(partial(context.is_right, ANY, SERVED[ANY])))


async def _ended(family: list[psutil.Process]) -> FaultOutcome:
    """How long until no process of it is left."""

    async def are_gone() -> bool:
        return not any(_is_alive(process) for process in family)

    try:
        return FaultOutcome(recovery_s=await until(are_gone, EXIT_LIMIT_S))
    except TimeoutError:
        left = [process for process in family if _is_alive(process)]
        return FaultOutcome(said=f"after {EXIT_LIMIT_S:g} s there was still {left}")


def _is_alive(process: psutil.Process) -> bool:
    """A zombie has ended, though its parent has not looked yet."""
    try:
        return bool(process.is_running() and process.status() != psutil.STATUS_ZOMBIE)
    except psutil.NoSuchProcess:
        return False


FAULTS = (
    InflictedFault("clock jumps a day", jump, RIGHT),
    InflictedFault("worker killed", partial(kill, WORKER), ends_server=True),
    InflictedFault("engine killed", partial(kill, ENGINE), ends_server=True),
    InflictedFault("API server killed", kill_first, ends_server=True),
    *(
        InflictedFault(
            name, partial(end, number, tells_all=tells_all), ends_server=True, drains=True
        )
        for name, number, tells_all in (
            ("SIGTERM with streams", signal.SIGTERM, False),
            ("Ctrl-C with streams", signal.SIGINT, True),
            ("SIGHUP with streams", signal.SIGHUP, True),
            ("SIGTERM to all with streams", signal.SIGTERM, True),
        )
    ),
)
