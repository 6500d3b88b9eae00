"""The servers that faults are done to: Chameleon, and stock vLLM with the same flags."""

import asyncio
import contextlib
import itertools
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from chameleon_lora.bench.replay import allow_many_connections, open_session
from chameleon_lora.servers.launching import (
    RUNTIME_LOADING,
    EngineShape,
    ServedModel,
    chameleon_command,
    cpu_server,
    stock_command,
)
from chameleon_lora.servers.process import running_process
from faults.adapter_fixtures import ADAPTERS, AdapterFixtures
from faults.client import Client
from faults.context import FaultContext, long_questions, questions
from faults.fault_injector import FaultInjector
from faults.load import KnownAnswers, learn

T = TypeVar("T")
SHAPE = EngineShape(slots=2, context_tokens=1024)
MEMORY = ("--num-gpu-blocks-override", "64", "--block-size", "32")
FEW_KERNELS = {"ONEDNN_PRIMITIVE_CACHE_CAPACITY": "64"}
"""Of the CPU's library, which else keeps 1,024 of them, one for each shape: that looks like a leak."""
LEARN_AT_ONCE = 4
START_LIMIT_S = 600.0


@dataclass(frozen=True, slots=True)
class ServerKind:
    """One kind of server.

    Attributes:
        is_stock: vLLM alone, with each adapter by name and as many in host memory as in slots.
    """

    is_stock: bool = False

    def command(self, model: Path, adapters: Path) -> tuple[str, ...]:
        """How it is started."""
        served = ServedModel.of(model, adapters, SHAPE)
        if self.is_stock:
            return stock_command(served, (*MEMORY, "--max-cpu-loras", str(SHAPE.slots)))
        return chameleon_command(served, (*MEMORY, "--set", "serving.debug_checks=true"))


@dataclass(frozen=True, slots=True)
class RunningServer:
    """A server that is up, with what it was started with, and what it answered then."""

    url: str
    kind: ServerKind
    fixtures: AdapterFixtures
    home: Path
    injector: FaultInjector
    process: psutil.Process
    known: KnownAnswers
    _names: "itertools.count[int]" = field(default_factory=itertools.count)

    def run(self, work: Callable[[FaultContext], Awaitable[T]]) -> T:
        """What `work` answers, given a client and all that a fault needs."""
        adapters = None if self.kind.is_stock else self.home / ADAPTERS

        async def with_context() -> T:
            async with open_session(reuses_connections=False) as session:
                client = Client(session, self.url)
                return await work(
                    FaultContext(
                        client,
                        self.known,
                        self.fixtures,
                        adapters,
                        self.home,
                        self.injector,
                        self.process,
                        self._names,
                    )
                )

        return asyncio.run(with_context())


@contextlib.contextmanager
def started(
    kind: ServerKind,
    fixtures: AdapterFixtures,
    home: Path,
    cache_dir: Path,
    known: KnownAnswers | None = None,
) -> Iterator[RunningServer]:
    """Such a server with eight adapters, whose answers are known; it is stopped on the way out.

    They are learnt from it, unless they are given.

    `home` becomes the folder of its adapters, its log and what faults need; `cache_dir` keeps the
    injector's library between runs.

    Raises:
        BenchError: it did not start, or there is no C compiler.
    """
    adapters = fixtures.served_below(home)
    injector = FaultInjector.make(cache_dir, home / "injector")
    spec = cpu_server(
        kind.command(fixtures.model, adapters),
        home / "server.log",
        {**RUNTIME_LOADING, **FEW_KERNELS, **injector.environment},
        START_LIMIT_S,
    )
    allow_many_connections()
    with running_process(spec) as process:
        known = known or asyncio.run(_learnt(spec.base_url))
        first = psutil.Process(process.pid)
        yield RunningServer(spec.base_url, kind, fixtures, home, injector, first, known)


async def _learnt(url: str) -> KnownAnswers:
    async with open_session(reuses_connections=False) as session:
        client = Client(session, url)
        return await learn(client, [*questions(), *long_questions()], LEARN_AT_ONCE)
