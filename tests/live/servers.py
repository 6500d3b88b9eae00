"""The servers under test: how each is started, and the adapters they are given.

Weights are numbered: weights n are those that seed n makes, wherever they are served and under
whatever name. Stock vLLM's answers are known by that number.
"""

import itertools
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
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
from faults import adapter_fixtures
from faults.adapter_fixtures import AdapterFixtures
from tests.live.client import Connection, Question, Reply, with_client

T = TypeVar("T")
BASE = BASE_MODEL
CONTEXT_TOKENS = 1024
WEIGHTS = tuple(range(12))
SERVED = adapter_fixtures.SERVED
"""Adapters that every server has from its start: name -> weights."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One way to run Chameleon.

    Attributes:
        slots: distinct adapters in one batch.
        seats: requests that run at a time.
        is_plain: vLLM's own command with `--scheduler-cls` and `--lora-modules`, rather than
            `chameleon serve` with a watched folder.
        flags: more of them.
    """

    name: str
    slots: int
    seats: int
    is_plain: bool = False
    flags: tuple[str, ...] = ()


ONE_SEAT = Setup("one-seat-two-slots", slots=2, seats=1)
MANY_SLOTS = Setup("plain-one-seat-eight-slots", slots=8, seats=1, is_plain=True)
SHARED = Setup(
    "two-slots-four-seats",
    slots=2,
    seats=4,
    flags=("--set", "serving.scan_s=0.2", "--set", "serving.debug_checks=true"),
)
VLLM_PRESET = Setup(
    "plain-preset-vllm",
    slots=2,
    seats=4,
    is_plain=True,
    flags=("--additional-config", '{"chameleon": {"preset": "vllm"}}'),
)
TIGHT_MEMORY = Setup(
    "tight-kv-cache",
    slots=4,
    seats=8,
    flags=(
        *("--num-gpu-blocks-override", "36", "--block-size", "32"),
        *("--set", "serving.debug_checks=true", "--set", "device.promotions_per_s=1000.0"),
    ),
)


@dataclass(frozen=True, slots=True)
class Server:
    """A running server and the folder its adapters lie in, one folder for each name."""

    url: str
    adapters: Path
    kit: AdapterFixtures
    _names: "itertools.count[int]" = field(default_factory=itertools.count)

    def fresh_name(self) -> str:
        """A name no adapter of this server has had."""
        return f"late-{next(self._names)}"

    def put(self, number: int, name: str | None = None) -> str:
        """A new adapter's name, whose folder has just appeared."""
        name = name or self.fresh_name()
        self.kit.place(number, self.adapters / name)
        return name

    def ask(self, questions: Sequence[Question], at_once: int = 1) -> list[Reply]:
        """The replies in the questions' order."""
        return self.run(lambda client: client.ask_all(questions, at_once))

    def run(self, work: Callable[[Connection], Awaitable[T]]) -> T:
        """What `work` answers, given a connection."""
        return with_client(self.url, work)


def server_spec(setup: Setup, kit: AdapterFixtures, adapters: Path, log: Path) -> ServerSpec:
    """How to start Chameleon so."""
    served = ServedModel.of(kit.model, adapters, _shape(setup.slots, setup.seats))
    if not setup.is_plain:
        return _spec(chameleon_command(served, setup.flags), log)
    own = ("--scheduler-cls", SCHEDULER, "--max-cpu-loras", str(setup.slots))
    return _spec(stock_command(served, (*own, *setup.flags)), log)


def stock_spec(kit: AdapterFixtures, log: Path) -> ServerSpec:
    """vLLM without Chameleon, one request at a time, a slot for all weights and some to spare."""
    slots = len(WEIGHTS) + 4
    served = ServedModel.of(kit.model, kit.root, _shape(slots, seats=1))
    return _spec(stock_command(served, ("--max-cpu-loras", str(slots))), log)


def _shape(slots: int, seats: int) -> EngineShape:
    return EngineShape(slots=slots, seats=seats, context_tokens=CONTEXT_TOKENS)


def _spec(command: tuple[str, ...], log: Path) -> ServerSpec:
    return cpu_server(command, log, RUNTIME_LOADING, start_limit_s=400.0)
