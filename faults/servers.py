"""The servers that faults are done to: Chameleon, and stock vLLM with the same flags."""

import asyncio
import contextlib
import itertools
import sys
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import TypeVar

import psutil

from chameleon_lora.bench.replay import allow_many_connections, open_session
from chameleon_lora.servers.process import ServerSpec, free_port, running_process
from faults.adapter_fixtures import MAX_RANK, AdapterFixtures
from faults.client import Client
from faults.context import BASE, SERVED, FaultContext, long_questions, questions
from faults.faulty import Faulty
from faults.load import Known, learn

T = TypeVar("T")
SLOTS, SEATS = 2, 8
KV_BLOCKS, BLOCK_TOKENS = 64, 32
LEARN_AT_ONCE = 4
START_LIMIT_S = 600.0
ADAPTERS = "adapters"


@dataclass(frozen=True, slots=True)
class Subject:
    """One kind of server.

    Attributes:
        is_stock: vLLM alone, with each adapter by name and as many in host memory as in slots.
    """

    is_stock: bool = False

    def command(self, kit: AdapterFixtures, adapters: Path, port: int) -> list[str]:
        """How it is started."""
        modules = [f"{name}={adapters / name}" for name in SERVED]
        if self.is_stock:
            own = [
                *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
                *("--model", str(kit.model), "--enable-lora", "--lora-modules", *modules),
            ]
        else:
            own = [
                *(sys.executable, "-m", "chameleon_lora.cli.main", "serve", str(kit.model)),
                *("--adapters", str(adapters), "--set", "serving.debug_checks=true"),
            ]
        return [*own, *_shared_flags(port)]


@dataclass(frozen=True, slots=True)
class Started:
    """A server that is up, with what it was started with, and what it answered then."""

    url: str
    subject: Subject
    kit: AdapterFixtures
    home: Path
    faulty: Faulty
    process: psutil.Process
    known: Known
    _names: "itertools.count[int]" = field(default_factory=itertools.count)

    def run(self, work: Callable[[FaultContext], Awaitable[T]]) -> T:
        """What `work` answers, given a scene."""
        adapters = None if self.subject.is_stock else self.home / ADAPTERS

        async def with_scene() -> T:
            async with open_session() as session:
                client = Client(session, self.url)
                return await work(
                    FaultContext(
                        client,
                        self.known,
                        self.kit,
                        adapters,
                        self.home,
                        self.faulty,
                        self.process,
                        self._names,
                    )
                )

        return asyncio.run(with_scene())


@contextlib.contextmanager
def started(
    subject: Subject,
    kit: AdapterFixtures,
    home: Path,
    cache_dir: Path,
    known: Known | None = None,
) -> Iterator[Started]:
    """Such a server with eight adapters, whose answers are known; it is stopped on the way out.

    They are learnt from it, unless they are given.

    `home` becomes the folder of its adapters, its log and what faults need; `cache_dir` keeps the
    faulty disk between runs.

    Raises:
        BenchError: it did not start, or there is no C compiler.
    """
    adapters = home / ADAPTERS
    adapters.mkdir(parents=True)
    for name, number in SERVED.items():
        kit.place(number, adapters / name)
    faulty = Faulty.make(cache_dir, home / "faulty")
    port = free_port()
    command = subject.command(kit, adapters, port)
    environment = _ENVIRONMENT | faulty.environment
    spec = ServerSpec(command, port, home / "server.log", environment, START_LIMIT_S)
    allow_many_connections()
    with running_process(spec) as process:
        known = known or asyncio.run(_learnt(spec.base_url))
        first = psutil.Process(process.pid)
        yield Started(spec.base_url, subject, kit, home, faulty, first, known)


async def _learnt(url: str) -> Known:
    async with open_session() as session:
        client = Client(session, url)
        return await learn(client, [*questions(), *long_questions()], LEARN_AT_ONCE)


def _shared_flags(port: int) -> tuple[str, ...]:
    return (
        *("--host", "127.0.0.1", "--port", str(port)),
        *("--served-model-name", BASE),
        *("--max-loras", str(SLOTS), "--max-lora-rank", str(MAX_RANK)),
        *("--max-num-seqs", str(SEATS), "--max-num-batched-tokens", "256"),
        *("--max-model-len", "1024", "--dtype", "float32", "--enforce-eager"),
        *("--num-gpu-blocks-override", str(KV_BLOCKS), "--block-size", str(BLOCK_TOKENS)),
        *("--uvicorn-log-level", "warning"),
    )


_ENVIRONMENT = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",  # for the API server and the client
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1",
}
