"""A registry over a folder, with stand-ins for what it uses of vLLM's API server and its engine."""

import asyncio
import itertools
import json
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from safetensors.numpy import load_file, save_file

from chameleon_lora.adapters import AdapterFolder
from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.engine_vllm.api.registry import AdapterRegistry
from chameleon_lora.engine_vllm.api.serving import NameLocks
from chameleon_lora.engine_vllm.messages import TRY

BASE = "base-model"
MAX_RANK = 8
NEVER_S = 3600.0
PATIENCE_S = 600.0  # a busy machine is no disk that hangs
DIMS = ModelDims(8, 8, 1, 1, 1, 8)


@dataclass
class FakeEngine:
    """The engine's client: keeps what it was told, and fails while it is told to.

    Attributes:
        failure: of loads that it is asked to try, if they fail; as it crosses the border.
    """

    calls: list[tuple[str, list[Any]]] = field(default_factory=list)
    is_down: bool = False
    failure: list[str] | None = None
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def call_utility_async(self, method: str, argument: Any) -> Any:
        """Note the call."""
        self.was_asked.set()
        if self.is_down:
            raise ConnectionError("the engine does not answer")
        is_trial = method == TRY
        self.calls.append((method, [argument] if is_trial else argument))
        return self.failure if is_trial else len(argument)


@dataclass
class FakeCounter:
    """vLLM's AtomicCounter."""

    numbers: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def inc(self, _by: int) -> int:
        """The next number."""
        return next(self.numbers)


@dataclass
class FakeLoraConfig:
    max_lora_rank: int = MAX_RANK


@dataclass
class FakeModelConfig:
    runner_type: str = "generate"
    score_type: str = "bi-encoder"


@dataclass
class FakeConfig:
    lora_config: FakeLoraConfig = field(default_factory=FakeLoraConfig)
    model_config: FakeModelConfig = field(default_factory=FakeModelConfig)
    additional_config: dict[str, Any] = field(default_factory=dict)


@dataclass
class FakeClient:
    engine_core: FakeEngine = field(default_factory=FakeEngine)
    vllm_config: FakeConfig = field(default_factory=FakeConfig)


@dataclass
class FakeModels:
    """What the registry uses of OpenAIServingModels."""

    engine_client: FakeClient = field(default_factory=FakeClient)
    lora_id_counter: FakeCounter = field(default_factory=FakeCounter)
    lora_requests: dict[str, Any] = field(default_factory=dict)

    def is_base_model(self, name: str) -> bool:
        """Whether the name is the base model's."""
        return name == BASE


@dataclass
class ServedFolder:
    """A folder, its registry, and what clients and the engine know of it."""

    root: Path
    models: FakeModels = field(default_factory=FakeModels)
    scan_s: float = NEVER_S
    converts_bin: bool = False

    def __post_init__(self) -> None:
        self.locks = NameLocks()
        serving = {"serving": {"converts_bin": self.converts_bin}}
        self.models.engine_client.vllm_config.additional_config["chameleon"] = serving
        folder = AdapterFolder(self.root, converts_bin=self.converts_bin)
        self.registry = AdapterRegistry(self.models, folder, self.scan_s)
        for patient in (self.registry._patient, self.registry._patient_load):
            patient._patience_s = PATIENCE_S

    def add(self, name: str, rank: int = 2, seed: int = 0) -> None:
        """Put a sound adapter into the folder, in place of one of that name."""
        shutil.rmtree(self.root / name, ignore_errors=True)
        make_adapter(self.root / name, DIMS, rank, seed=seed, target_modules=["q_proj"])

    def refresh(self, name: str) -> None:
        """A client names an adapter."""
        asyncio.run(self.registry.refresh(name))

    def refresh_all(self) -> None:
        """The registry looks at the folder, as it does every `scan_s`."""
        asyncio.run(self.registry._refresh_all())

    @property
    def engine(self) -> FakeEngine:
        """What the engine was told."""
        return self.models.engine_client.engine_core

    def told(self) -> list[tuple[str, list[str]]]:
        """What the engine was told since the last question: the call, and the names in it."""
        calls = [
            (
                method.removeprefix("chameleon_"),
                [a if isinstance(a, str) else a["name"] for a in named],
            )
            for method, named in self.engine.calls
        ]
        self.engine.calls.clear()
        return calls


def bring_head(folder: Path) -> None:
    """Afterwards the adapter there brings a classifier's head of its own."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    (folder / CONFIG_NAME).write_text(json.dumps({**config, "modules_to_save": ["score"]}))
    file = folder / WEIGHTS_NAME
    save_file({**load_file(file), "base_model.model.score.weight": np.ones((2, 8))}, file)


_OPENED: list[str] = []
_EVENTS: list[str] = []  # an audit hook lasts as long as the process


def opened_by(work: Callable[[], object]) -> list[str]:
    """The files that were opened, and the folders that were listed, meanwhile."""
    if not _EVENTS:
        _EVENTS.extend(("open", "os.listdir", "os.scandir"))
        sys.addaudithook(_note)
    _OPENED.clear()
    work()
    return list(_OPENED)


def _note(event: str, args: tuple[Any, ...]) -> None:
    if event in _EVENTS:
        _OPENED.append(str(args[0]))
