"""A folder of adapters, offered to an engine and its clients as it changes."""

import asyncio
import itertools
import shutil
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.adapters import AdapterFolder
from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.engine_vllm.shelf import Shelf
from chameleon_lora.errors import AdapterNotFoundError, AdapterTooLargeError

pytestmark = pytest.mark.vllm

BASE = "base-model"
MAX_RANK = 8
NEVER_S = 3600.0
DIMS = ModelDims(
    hidden_size=8,
    intermediate_size=8,
    num_hidden_layers=1,
    num_attention_heads=1,
    num_key_value_heads=1,
    head_dim=8,
)


@dataclass
class FakeEngine:
    """The engine's client: keeps what it was told, and fails while it is told to."""

    calls: list[tuple[str, list[Any]]] = field(default_factory=list)
    is_down: bool = False
    was_asked: asyncio.Event = field(default_factory=asyncio.Event)

    async def call_utility_async(self, method: str, argument: list[Any]) -> int:
        """Note the call."""
        self.was_asked.set()
        if self.is_down:
            raise ConnectionError("the engine does not answer")
        self.calls.append((method, argument))
        return len(argument)


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
class FakeConfig:
    lora_config: FakeLoraConfig = field(default_factory=FakeLoraConfig)


@dataclass
class FakeClient:
    engine_core: FakeEngine = field(default_factory=FakeEngine)
    vllm_config: FakeConfig = field(default_factory=FakeConfig)


@dataclass
class FakeModels:
    """What the shelf uses of OpenAIServingModels."""

    engine_client: FakeClient = field(default_factory=FakeClient)
    lora_id_counter: FakeCounter = field(default_factory=FakeCounter)
    lora_requests: dict[str, Any] = field(default_factory=dict)

    def is_base_model(self, name: str) -> bool:
        """Whether the name is the base model's."""
        return name == BASE


@dataclass
class Desk:
    """A folder, its shelf, and what clients and the engine know of it."""

    root: Path
    models: FakeModels = field(default_factory=FakeModels)
    scan_s: float = NEVER_S

    def __post_init__(self) -> None:
        self.shelf = Shelf(self.models, AdapterFolder(self.root), self.scan_s)

    def add(self, name: str, rank: int = 2, seed: int = 0) -> None:
        """Put a sound adapter into the folder, in place of one of that name."""
        shutil.rmtree(self.root / name, ignore_errors=True)
        make_adapter(self.root / name, DIMS, rank, seed=seed, target_modules=["q_proj"])

    def look(self, name: str) -> None:
        """A client names an adapter."""
        asyncio.run(self.shelf.look(name))

    def follow(self) -> None:
        """The shelf looks at the folder, as it does every `scan_s`."""
        asyncio.run(self.shelf._follow())

    @property
    def engine(self) -> FakeEngine:
        """What the engine was told."""
        return self.models.engine_client.engine_core

    def told(self) -> list[tuple[str, list[str]]]:
        """What the engine was told since the last question: the call, and the names in it."""
        calls = [
            (method.removeprefix("chameleon_"), [a if isinstance(a, str) else a[0] for a in named])
            for method, named in self.engine.calls
        ]
        self.engine.calls.clear()
        return calls


@pytest.fixture(autouse=True)
def _has_vllm() -> None:
    """Listing an adapter takes vLLM's LoRARequest."""
    pytest.importorskip("vllm")


@pytest.fixture
def desk(tmp_path: Path) -> Desk:
    """A folder that holds the adapters a and b."""
    desk = Desk(tmp_path / "adapters")
    desk.add("a")
    desk.add("b", rank=4)
    return desk


def test_what_is_there_is_announced_and_listed(desk: Desk) -> None:
    """One call for all; each announcement says path, content, bytes and rank; clients see them."""
    desk.follow()
    [(method, sources)] = desk.engine.calls
    assert "chameleon_announce" == method
    assert [("a", 2), ("b", 4)] == [(source[0], source[4]) for source in sources]
    assert [str(desk.root / "a"), str(desk.root / "b")] == [source[1] for source in sources]
    assert all(len(source[2]) == 16 and source[3] > 0 for source in sources)
    listed = desk.models.lora_requests
    assert {"a": 1, "b": 2} == {name: request.lora_int_id for name, request in listed.items()}
    assert str(desk.root / "a") == listed["a"].lora_path


def test_a_folder_that_did_not_change_is_not_told_again(desk: Desk) -> None:
    """The second look says nothing to the engine."""
    desk.follow()
    desk.told()
    desk.follow()
    assert [] == desk.told()


def test_a_new_folder_is_offered(desk: Desk) -> None:
    """Only the new one is announced."""
    desk.follow()
    desk.told()
    desk.add("c")
    desk.follow()
    assert [("announce", ["c"])] == desk.told()
    assert "c" in desk.models.lora_requests


def test_a_changed_adapter_is_announced_anew(desk: Desk) -> None:
    """With another fingerprint; the name stays listed as it was."""
    desk.follow()
    before = desk.engine.calls[0][1][0]
    request = desk.models.lora_requests["a"]
    desk.engine.calls.clear()
    desk.add("a", seed=1)
    desk.follow()
    [(_, [after])] = desk.engine.calls
    assert before[:2] == after[:2]
    assert before[2] != after[2]
    assert request is desk.models.lora_requests["a"]


def test_a_removed_adapter_is_withdrawn(desk: Desk) -> None:
    """The engine is told and clients no longer see it."""
    desk.follow()
    desk.told()
    shutil.rmtree(desk.root / "a")
    desk.follow()
    assert [("withdraw", ["a"])] == desk.told()
    assert ["b"] == list(desk.models.lora_requests)


def test_a_broken_adapter_is_refused_with_its_reason(desk: Desk) -> None:
    """It is neither announced nor listed; the others are."""
    (desk.root / "a" / CONFIG_NAME).write_text("{")
    desk.follow()
    assert [("announce", ["b"])] == desk.told()
    assert ["b"] == list(desk.models.lora_requests)
    assert ["a"] == list(desk.shelf.refused)
    assert desk.shelf.refused["a"].startswith("adapter 'a': ")


def test_a_rank_above_the_engines_is_refused_with_both_numbers(desk: Desk) -> None:
    """The limit is the engine's max_lora_rank."""
    desk.add("wide", rank=MAX_RANK + 1)
    desk.follow()
    assert "its rank is 9, the limit is 8" in desk.shelf.refused["wide"]


def test_an_adapter_that_breaks_is_taken_down(desk: Desk) -> None:
    """What was served and cannot be read any more is withdrawn and refused."""
    desk.follow()
    desk.told()
    (desk.root / "a" / CONFIG_NAME).write_text("{")
    desk.follow()
    assert [("withdraw", ["a"])] == desk.told()
    assert (["b"], ["a"]) == (list(desk.models.lora_requests), list(desk.shelf.refused))


def test_a_mended_adapter_is_offered_and_refused_no_more(desk: Desk) -> None:
    """Its reason goes when its files are sound."""
    (desk.root / "a" / CONFIG_NAME).write_text("{")
    desk.follow()
    desk.told()
    desk.add("a")
    desk.follow()
    assert [("announce", ["a"])] == desk.told()
    assert {} == desk.shelf.refused


def test_a_refused_adapter_that_goes_is_forgotten(desk: Desk) -> None:
    """A name without a folder is unknown, not refused."""
    (desk.root / "a" / CONFIG_NAME).write_text("{")
    desk.follow()
    shutil.rmtree(desk.root / "a")
    desk.follow()
    assert {} == desk.shelf.refused


def test_a_folder_that_cannot_be_listed_keeps_the_offer(desk: Desk) -> None:
    """A disk that is away for a while withdraws nothing; when it is back nothing is told anew."""
    desk.follow()
    desk.told()
    away = desk.root.rename(desk.root.with_name("away"))
    desk.follow()
    assert ([], ["a", "b"]) == (desk.told(), list(desk.models.lora_requests))
    away.rename(desk.root)
    desk.follow()
    assert [] == desk.told()


@pytest.mark.parametrize("is_sound", [True, False])
def test_the_base_models_name_is_not_taken(desk: Desk, is_sound: bool) -> None:
    """A folder of that name, sound or broken, is neither offered nor does it refuse the base model."""
    desk.add(BASE)
    if not is_sound:
        (desk.root / BASE / CONFIG_NAME).write_text("{")
    desk.follow()
    assert [("announce", ["a", "b"])] == desk.told()
    assert {} == desk.shelf.refused
    assert BASE not in desk.models.lora_requests


def test_what_the_engine_was_not_told_is_told_again(desk: Desk) -> None:
    """A look that failed half-way is made again from the start."""
    desk.engine.is_down = True
    with pytest.raises(ConnectionError):
        desk.follow()
    desk.engine.is_down = False
    desk.follow()
    assert [("announce", ["a", "b"])] == desk.told()


class TestLook:
    def test_a_name_that_came_since_is_offered_at_once(self, desk: Desk) -> None:
        """A request for a folder that is newer than the last look does not wait for the next."""
        desk.follow()
        desk.told()
        desk.add("c")
        desk.look("c")
        assert [("announce", ["c"])] == desk.told()

    @pytest.mark.parametrize("name", ["a", "none", "../adapters/a", ""])
    def test_other_names_cost_no_look(self, desk: Desk, name: str) -> None:
        """Known names, unknown ones and paths change nothing."""
        desk.follow()
        desk.told()
        desk.add("c")
        desk.look(name)
        assert [] == desk.told()

    def test_without_a_folder_there_is_nothing_to_look_at(self) -> None:
        """A shelf without a folder serves what is loaded by request only."""
        models = FakeModels()
        asyncio.run(Shelf(models, None, NEVER_S).look("a"))
        assert {} == models.lora_requests


class TestByRequest:
    def test_an_adapter_from_elsewhere_is_checked_and_offered(self, desk: Desk) -> None:
        """/v1/load_lora_adapter may name any folder; the engine learns what it holds."""

        async def load() -> None:
            info = await desk.shelf.check(str(desk.root / "b"))
            await desk.shelf.offer("mine", str(desk.root / "b"), info, is_3d=True)

        asyncio.run(load())
        [(_, [source])] = desk.engine.calls
        assert ("mine", str(desk.root / "b"), 4, True) == (source[0], source[1], *source[4:])

    def test_a_missing_folder_is_told_as_missing(self, desk: Desk) -> None:
        """The error names the adapter."""
        with pytest.raises(AdapterNotFoundError, match="'none'"):
            asyncio.run(desk.shelf.check(str(desk.root / "none")))

    def test_a_rank_above_the_engines_is_told_as_too_large(self, desk: Desk) -> None:
        """The error gives rank and limit."""
        desk.add("wide", rank=MAX_RANK + 1)
        with pytest.raises(AdapterTooLargeError, match="rank is 9, the limit is 8"):
            asyncio.run(desk.shelf.check(str(desk.root / "wide")))

    def test_removing_withdraws_the_name(self, desk: Desk) -> None:
        """The engine is told; the folder is not looked at."""
        asyncio.run(desk.shelf.remove("mine"))
        assert [("withdraw", ["mine"])] == desk.told()


def test_the_watch_goes_on_after_a_bad_look(tmp_path: Path) -> None:
    """Opened, the shelf follows the folder by itself, also after the engine failed to answer."""
    desk = Desk(tmp_path / "adapters", scan_s=0.01)
    desk.add("a")

    async def watch() -> None:
        await desk.shelf.open()
        desk.engine.is_down = True
        for name in "bc":
            desk.engine.was_asked.clear()
            desk.add(name)
            await desk.engine.was_asked.wait()
            desk.engine.is_down = False

    asyncio.run(asyncio.wait_for(watch(), 10))
    told = [name for _, names in desk.told() for name in names]
    assert ["a", "b", "c"] == sorted(set(told))
