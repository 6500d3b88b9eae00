"""Faults of the server's processes and of its clock."""

import asyncio
import contextlib
import os
import signal
from collections.abc import AsyncIterator
from functools import partial

import psutil

from faults.adapter_fixtures import SERVED
from faults.client import until
from faults.context import ANY, FaultContext
from faults.fault import RIGHT, Fault, FaultOutcome

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


async def terminate(context: FaultContext) -> FaultOutcome:
    """SIGTERM with streams in flight: they end whole, and then the server does.

    Beside them a client has announced a body that never comes, which may not hold the end up.
    """
    family = context.process.children(recursive=True)
    async with _unfinished_body(context.client.url):
        context.process.send_signal(signal.SIGTERM)
        return await _ended([context.process, *family])


async def interrupt(context: FaultContext) -> FaultOutcome:
    """The same by Ctrl-C at a terminal, which signals all processes of the server."""
    family = context.process.children(recursive=True)
    async with _unfinished_body(context.client.url):
        os.killpg(context.process.pid, signal.SIGINT)
        return await _ended([context.process, *family])


async def jump(context: FaultContext) -> FaultOutcome:
    """The wall clock jumps a day ahead, and a day back."""
    for seconds in JUMPS_S:
        with context.injector.clock_jumped(seconds):
            await asyncio.sleep(JUMP_LASTS_S)
    return FaultOutcome(recovery_s=await until(partial(context.is_right, ANY, SERVED[ANY])))


@contextlib.asynccontextmanager
async def _unfinished_body(url: str) -> AsyncIterator[None]:
    """A request that the server has begun to read, and whose rest does not come."""
    host, _, port = url.rpartition("/")[2].partition(":")
    reader, writer = await asyncio.open_connection(host, int(port))
    writer.write(
        b"POST /v1/completions HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\n"
        b"Content-Length: 9\r\nExpect: 100-continue\r\n\r\n"
    )
    await reader.readline()  # that it may go on
    try:
        yield
    finally:
        writer.close()


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
    Fault("clock jumps a day", jump, RIGHT),
    Fault("worker killed", partial(kill, WORKER), ends_server=True),
    Fault("engine killed", partial(kill, ENGINE), ends_server=True),
    Fault("SIGTERM with streams", terminate, ends_server=True, drains=True),
    Fault("Ctrl-C with streams", interrupt, ends_server=True, drains=True),
)
