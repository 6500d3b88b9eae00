"""What an engine process understands beyond vLLM, and when it wakes by itself."""

import queue
import shutil
from collections.abc import Callable
from dataclasses import asdict
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.adapters.make import make_adapter
from chameleon_lora.engine_vllm.core.requested_version import name_version
from chameleon_lora.engine_vllm.core.utilities import (
    _next_input,
    adding,
    announce,
    listing,
    pin,
    pinning,
    removing,
    state,
    waking,
    withdraw,
)
from chameleon_lora.engine_vllm.messages import LoadAdapter
from chameleon_lora.errors import AdapterInvalidError, AdapterNotFoundError, AdapterTooLargeError
from chameleon_lora.settings import LoraBackend, ServingSettings
from tests.engine_vllm.fake_requests import ROOM, announced, make_driver
from tests.engine_vllm.served_folder import DIMS, bring_head

pytestmark = pytest.mark.vllm


class IdleEngine:
    """An idle engine as far as its queue, its scheduler and its sleep."""

    def __init__(self) -> None:
        pytest.importorskip("vllm")
        self.driver = make_driver()
        lora_config = SimpleNamespace(max_lora_rank=8)
        self.vllm_config = SimpleNamespace(
            lora_config=lora_config,
            model_config=SimpleNamespace(runner_type="generate"),
            additional_config=None,
        )
        self.scheduler = SimpleNamespace(
            chameleon=self.driver, chameleon_is_due=False, lora_config=lora_config
        )
        self.input_queue: queue.Queue[Any] = queue.Queue()
        self.aborts_queue: queue.Queue[Any] = queue.Queue()
        self.process_input_queue_block = True
        self.asked: list[Any] = []
        self.sleeps = False
        self.next_input = partial(_next_input, self, self.input_queue.get)

    def has_work(self) -> bool:
        """Whether to make a step."""
        return bool(self.scheduler.chameleon_is_due)

    def is_running(self) -> bool:
        """Not told to end."""
        return True

    def _notify_idle_state_callbacks(self) -> None:
        """Nobody waits for it to be idle."""

    def _handle_client_request(self, *asked: Any) -> None:
        self.asked.append(asked)

    def is_sleeping(self) -> bool:
        """Paused, or its memory gone."""
        return self.sleeps


def test_an_idle_engine_wakes_for_a_pin() -> None:
    """One step is due then, as if a client had asked for it; what clients ask comes first."""
    from vllm.v1.engine import EngineCoreRequestType

    engine = IdleEngine()
    engine.driver.announce(announced("a"))
    engine.input_queue.put("a request")
    assert pin(engine, "a", is_pinned=True) is None
    assert ("a request", False) == (engine.next_input(), engine.scheduler.chameleon_is_due)
    assert (EngineCoreRequestType.WAKEUP, None) == engine.next_input()
    assert engine.scheduler.chameleon_is_due
    plan = engine.driver.begin_step(ROOM, 1.0)
    assert [LoadAdapter] == [type(command) for command in engine.driver.commands(plan)]


def test_vllms_own_wait_ends_when_a_step_is_due() -> None:
    """What clients ask meanwhile is handled first, as ever."""
    from vllm.v1.engine.core import EngineCoreProc

    engine = IdleEngine()
    engine.driver.announce(announced("a"))
    pin(engine, "a", is_pinned=True)
    engine.input_queue.put(("asked", 1))
    waking(EngineCoreProc._process_input_queue)(engine)
    assert ("asked", 1) == engine.asked[0]
    assert engine.has_work()


def test_an_engine_that_sleeps_is_not_woken() -> None:
    """Its memory may be gone; nor is whoever only looks kept waiting."""
    engine = IdleEngine()
    engine.driver.announce(announced("a"))
    pin(engine, "a", is_pinned=True)
    engine.sleeps = True
    engine.input_queue.put("wake up")
    assert "wake up" == engine.next_input()
    engine.sleeps = False
    with pytest.raises(queue.Empty):
        engine.next_input(block=False)
    assert not engine.scheduler.chameleon_is_due


def test_announcements_cross_the_border_by_their_fields_names() -> None:
    """From then on requests announce nothing: that is for whoever looks into files."""
    engine = IdleEngine()
    source = announced("a")
    assert (1, True) == (announce(engine, [asdict(source)]), engine.driver.has_api_server)
    version = engine.driver.versions.current("a")
    assert version is not None
    assert source == version.source
    assert [1, 0] == [withdraw(engine, ["a"]), withdraw(engine, ["a"])]


class Ids(IdleEngine):
    """An engine asked by the ids that a client gives, as vLLM's own is; folders are real."""

    def __init__(self, root: Path) -> None:
        super().__init__()
        self.root = root

    def lora(self, client_id: int, name: str = "a", path: str | None = None, **fields: Any) -> Any:
        """A LoRARequest for the folder of this name, or for a path."""
        from vllm.lora.request import LoRARequest

        return LoRARequest(name, client_id, path or str(self.root / name), **fields)

    def folder(self, name: str, rank: int = 4, seed: int = 0) -> Path:
        """An adapter on disk."""
        return make_adapter(self.root / name, DIMS, rank, seed=seed, target_modules=["q_proj"])

    def add(self, *lora: Any, **fields: Any) -> bool:
        """EngineCore.add_lora."""
        return bool(adding(_not_ours)(self, self.lora(*lora, **fields)))

    def remove(self, client_id: int) -> bool:
        """EngineCore.remove_lora."""
        return bool(removing(_not_ours)(self, client_id))

    def list(self) -> set[int]:
        """EngineCore.list_loras."""
        return set(listing(_not_ours)(self))

    def pin(self, client_id: int) -> bool:
        """EngineCore.pin_lora."""
        return bool(pinning(_not_ours)(self, client_id))

    def ask(self, *lora: Any, **fields: Any) -> str:
        """A request comes; the name inside of the adapter it gets."""
        request = SimpleNamespace(
            lora_request=self.lora(*lora, **fields), block_hashes=[], update_block_hashes=list
        )
        passing = name_version(self.driver, request)
        if passing is not None:
            self.driver.retire(passing)
        return str(request.lora_request.lora_name)


def inner_name(ids: Ids, name: str) -> str:
    """That of the version which serves under a name."""
    version = ids.driver.versions.current(name)
    assert version is not None
    return version.inner_name


def _not_ours(*asked: Any) -> Any:
    raise AssertionError(asked)


@pytest.fixture
def ids(tmp_path: Path) -> Ids:
    """An engine beside the folders `a` and `b`."""
    engine = Ids(tmp_path)
    engine.folder("a")
    engine.folder("b", seed=1)
    return engine


def test_an_adapter_that_was_added_is_listed_by_its_clients_id(ids: Ids) -> None:
    """At once, though nothing was read; also one that a request brought; until it is removed."""
    assert ids.add(50)
    assert {50} == ids.list()
    assert [True, set(), False] == [ids.remove(50), ids.list(), ids.remove(50)]
    assert ids.driver.versions.current("a") is None
    ids.ask(7, "b")
    assert {7} == ids.list()


def test_a_pinned_adapter_is_read_and_stays_listed(ids: Ids) -> None:
    """An id that nobody gave is told so, in vLLM's own kind of error."""
    ids.add(50)
    assert ids.pin(50)
    assert ids.driver.policy.adapter(ids.driver.versions.current("a").id).is_pinned  # type: ignore[union-attr]
    for client_id in range(60, 70):
        ids.ask(client_id, "b")
    assert {50, 69} == ids.list()  # there is room for one, as with max_cpu_loras = 1
    with pytest.raises(ValueError, match="known by the id 60"):
        ids.pin(60)


def test_an_adapter_is_meant_by_its_id_where_a_path_leads_nowhere(ids: Ids) -> None:
    """Trainers ask so for what they have added, whatever name and path they write."""
    ids.add(50)
    inner = inner_name(ids, "a")
    assert [inner, inner] == [ids.ask(50, "50", path="/stub"), ids.ask(50, "a", path="stub")]
    assert ids.add(50, "50", path="/stub")
    assert ({50}, 1) == (ids.list(), len(ids.driver.versions))


def test_another_adapter_takes_the_place_of_an_id(ids: Ids) -> None:
    """By an add, by a request, or in place; the former is served no longer, but to who has another id."""
    ids.add(1)
    ids.add(1, "b")
    assert (None, {1}) == (ids.driver.versions.current("a"), ids.list())
    first = ids.ask(1, "a")
    assert ids.driver.versions.current("b") is None
    ids.driver.client_ids._most = 2
    ids.ask(2, "a")
    ids.add(1, "b")
    assert ({1, 2}, first) == (ids.list(), ids.ask(2, "a"))
    ids.remove(1)
    ids.ask(3, "a")
    assert [True, first] == [ids.remove(3), ids.ask(2, "a")]


def test_new_files_are_a_new_content_for_the_same_id(ids: Ids) -> None:
    """Added again unchanged it is the same one, which need not be read anew; so for what was read before."""
    ids.ask(1)
    version = ids.driver.versions.current("a")
    assert version is not None
    ids.add(1)
    ids.driver.versions.load(ids.driver.versions.current("a").id)  # type: ignore[union-attr]
    known = ids.ask(1)
    assert ids.add(1)
    assert known == ids.ask(1)
    shutil.rmtree(ids.root / "a")
    ids.folder("a", rank=8, seed=2)
    assert known == ids.ask(1)
    ids.add(1)
    assert known != ids.ask(1)


def test_an_adapter_that_cannot_be_served_is_not_added(ids: Ids) -> None:
    """It is told which and why; what the id meant goes on."""
    ids.folder("wide", rank=16)
    ids.add(1)
    for name, error in (("none", AdapterNotFoundError), ("wide", AdapterTooLargeError)):
        with pytest.raises(error, match=name):
            ids.add(2, name)
        with pytest.raises(error, match=name):
            ids.add(1, name, load_inplace=True)
    assert ({1}, inner_name(ids, "a")) == (ids.list(), ids.ask(1))


def test_a_classifiers_head_is_not_added_where_nothing_classifies(ids: Ids) -> None:
    """As an API server refuses it; an engine that classifies takes it."""
    bring_head(ids.root / "a")
    with pytest.raises(AdapterInvalidError, match="is the head of a classifier"):
        ids.add(1)
    ids.vllm_config.model_config = SimpleNamespace(
        runner_type="pooling", score_type="cross-encoder"
    )
    assert ids.add(1)


def test_what_an_api_server_offers_is_freed_by_its_id_and_stays_offered(ids: Ids) -> None:
    """Its ids are labels, of each server apart: none takes the place of another's adapter."""
    announce(ids, [asdict(announced("a")), asdict(announced("b"))])
    assert ids.add(5, "a", path="/adapters/a")
    assert [inner_name(ids, "b"), {5}] == [ids.ask(5, "b"), ids.list()]
    ids.ask(5, "a")
    first = ids.driver.versions.current("a")
    assert ids.remove(5)
    assert ids.list() == set()
    assert first != ids.driver.versions.current("a")
    assert [inner_name(ids, name) for name in "ba"] == [ids.ask(6, "b"), ids.ask(5, "a")]
    withdraw(ids, ["b", "a"])
    assert ids.ask(6, "b", path="/adapters/b").startswith("b@")
    assert ids.list() == set()


@pytest.mark.parametrize(
    ("hook", "asked"), [(adding, ["lora"]), (removing, [1]), (listing, []), (pinning, [1])]
)
def test_an_engine_without_adapters_answers_in_vllms_words(
    hook: Callable[..., Any], asked: list[Any]
) -> None:
    """Which say that LoRA is not enabled."""
    engine = IdleEngine()
    engine.scheduler.lora_config = None
    assert (engine, *asked) == hook(lambda *given: given)(engine, *asked)


def test_the_state_says_where_batches_use_adapters() -> None:
    """And why, as the engine's first line in the log."""
    engine = IdleEngine()
    told = {"kind": "slots", "why": "serving.lora_backend is slots"}
    engine.driver.serving = ServingSettings(lora_backend=LoraBackend.SLOTS)
    assert told == (state(engine) or {})["lora_backend"]
    engine.vllm_config.lora_config = None
    assert {**told, "why": "there are no adapters"} == (state(engine) or {})["lora_backend"]
