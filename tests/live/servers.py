"""The servers under test: how each is started, and the adapters they are given.

Weights are numbered: weights n are those that seed n makes, wherever they are served and under
whatever name. Stock vLLM's answers are known by that number.
"""

import itertools
import shutil
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TypeVar

from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.servers.launching import (
    BASE_MODEL,
    RUNTIME_LOADING,
    EngineShape,
    ServedModel,
    chameleon_command,
    cpu_server,
    stock_command,
)
from chameleon_lora.servers.process import ServerSpec
from faults.adapter_fixtures import SERVED, AdapterFixtures
from tests.live.client import Connection, Question, Reply, adapters_known, until, with_client

T = TypeVar("T")
BASE = BASE_MODEL
CONTEXT_TOKENS = 1024
WEIGHTS = tuple(range(12))
NAMES = (*SERVED, BASE)


@dataclass(frozen=True, slots=True)
class ServerSetup:
    """One way to run Chameleon.

    Attributes:
        slots: distinct adapters in one batch, of an engine that has slots.
        seats: requests that run at a time.
        is_plain: vLLM's own command with `--scheduler-cls` and `--lora-modules`, rather than
            `chameleon serve` with a watched folder.
        is_pooling: it writes no tokens.
        flags: more of them.
    """

    name: str
    slots: int
    seats: int
    is_plain: bool = False
    is_pooling: bool = False
    flags: tuple[str, ...] = ()


MANY_SLOTS = ServerSetup("plain-one-seat-eight-slots", slots=8, seats=1, is_plain=True)
SHARED = ServerSetup(
    "eight-seats",
    slots=2,
    seats=8,
    flags=(
        *("--num-gpu-blocks-override", "48", "--block-size", "32"),
        *("--set", "serving.debug_checks=true", "--set", "device.promotions_per_s=1000.0"),
        *("--set", "serving.scan_s=0.2"),
    ),
)
"""As users get it on a CPU, without slots; scarce in KV blocks."""
IN_SLOTS = replace(
    SHARED, name="two-slots", flags=(*SHARED.flags, "--set", "serving.lora_backend=slots")
)
"""As other devices have it: scarce in slots too, and adapters come into KV blocks as fast as they can."""
EMBEDDING = ServerSetup(
    "embedding",
    slots=2,
    seats=4,
    is_pooling=True,
    flags=(
        *("--runner", "pooling", "--convert", "embed"),
        *(
            "--set",
            "serving.scan_s=3600.0",
        ),  # what is new is found by a request for it, or not at all
    ),
)
VLLM_PRESET = ServerSetup(
    "plain-preset-vllm",
    slots=2,
    seats=4,
    is_plain=True,
    flags=("--additional-config", '{"chameleon": {"preset": "vllm"}}'),
)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and the folder its adapters lie in, one folder for each name.

    Attributes:
        setup: how it was started.
        is_tidied: other tests on it need the adapters of the start alone.
    """

    url: str
    setup: ServerSetup
    adapters: Path
    fixtures: AdapterFixtures
    is_tidied: bool
    _names: "itertools.count[int]" = field(default_factory=itertools.count)

    def fresh_name(self) -> str:
        """A name no adapter of this server has had."""
        return f"late-{next(self._names)}"

    def put(self, number: int, name: str | None = None) -> str:
        """A new adapter's name, whose folder has just appeared."""
        name = name or self.fresh_name()
        self.fixtures.place(number, self.adapters / name)
        return name

    def ask(self, questions: Sequence[Question], at_once: int = 1) -> list[Reply]:
        """The replies in the questions' order."""
        return self.run(lambda client: client.ask_all(questions, at_once))

    def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """What `work` answers, given a connection."""
        return with_client(self.url, work)

    def tidy(self) -> None:
        """Afterwards the adapters are those of the start: as folders, by name and in the engine."""
        for path in self.adapters.iterdir():
            if path.name in SERVED:
                continue
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink()
        self.run(_unload_late_ones)


async def _unload_late_ones(client: Connection) -> None:
    for name in (await client.models()).keys() - SERVED.keys() - {BASE}:
        await client.post("/v1/unload_lora_adapter", {"lora_name": name})

    async def are_gone() -> bool:
        if await adapters_known(client) == len(SERVED):
            return True
        await client.ask(Question(BASE, (5, 6, 7), tokens=1))  # what is to go, goes at a step
        return False

    await until(are_gone)


def server_spec(
    setup: ServerSetup, fixtures: AdapterFixtures, adapters: Path, log: Path
) -> ServerSpec:
    """How to start Chameleon so."""
    served = ServedModel.of(fixtures.model, adapters, _shape(setup.slots, setup.seats))
    if not setup.is_plain:
        return _spec(chameleon_command(served, setup.flags), log)
    own = ("--scheduler-cls", SCHEDULER, "--max-cpu-loras", str(setup.slots))
    return _spec(stock_command(served, (*own, *setup.flags)), log)


def stock_spec(fixtures: AdapterFixtures, log: Path) -> ServerSpec:
    """vLLM without Chameleon, one request at a time, a slot for all weights and some to spare."""
    slots = len(WEIGHTS) + 4
    served = ServedModel.of(fixtures.model, fixtures.root, _shape(slots, seats=1))
    return _spec(stock_command(served, ("--max-cpu-loras", str(slots))), log)


def _shape(slots: int, seats: int) -> EngineShape:
    return EngineShape(slots=slots, seats=seats, context_tokens=CONTEXT_TOKENS)


def _spec(command: tuple[str, ...], log: Path) -> ServerSpec:
    return cpu_server(command, log, RUNTIME_LOADING, start_limit_s=400.0)
