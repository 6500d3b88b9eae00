"""Adapters in vLLM's slots, in any history: each layer gives what it gives in a fresh engine."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.engine_vllm.messages import (
    ActivateAdapter,
    DropAdapter,
    LoadAdapter,
)
from chameleon_lora.errors import AdapterError
from chameleon_lora.settings import ServingSettings
from tests.engine_vllm.conftest import SLOTS

torch = pytest.importorskip("torch")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

from chameleon_lora.engine_vllm.worker.agreement import Agreement  # noqa: E402
from chameleon_lora.engine_vllm.worker.copier import ThreadCopier  # noqa: E402
from chameleon_lora.engine_vllm.worker.device_store import DeviceStore  # noqa: E402
from chameleon_lora.engine_vllm.worker.loader import Loader, ReadAdapter  # noqa: E402
from chameleon_lora.engine_vllm.worker.lora_manager import make_worker_adapters  # noqa: E402
from chameleon_lora.engine_vllm.worker.packed_adapter import StockCopy  # noqa: E402
from chameleon_lora.engine_vllm.worker.slots import Slots  # noqa: E402
from chameleon_lora.engine_vllm.worker.worker_adapters import WorkerAdapters  # noqa: E402
from tests.engine_vllm.adapter_commands import load_all  # noqa: E402
from tests.engine_vllm.layer_answers import (  # noqa: E402
    Deltas,
    adapters_of,
    all_stacked,
    assert_as_alone,
    deltas,
    slot_bytes,
)

RANKS = {1: 4, 2: 8, 3: 16, 4: 4, 5: 8, 6: 4, 7: 3, 8: 4, 9: 12, 10: 4}
TARGETS = {4: ("q_proj", "v_proj"), 5: ("k_proj", "down_proj"), 6: ("up_proj",)}
WITH_ENDS = (1, 2, 3, 8)  # adapters that change embedding and output head too


@pytest.fixture(scope="module")
def folders(make_adapter: Any) -> dict[int, Path]:
    """Ten adapters of ranks 3 to 16."""
    return adapters_of(make_adapter, RANKS, TARGETS, WITH_ENDS)


Use = Callable[[], Any]


@pytest.fixture(scope="module")
def use(lora_engine: Any) -> Use:
    """Gives the engine a manager that knows nothing, over slots full of NaN."""

    def start_afresh() -> Any:
        manager = lora_engine.worker_manager
        manager.remove_all_adapters()
        manager.adapters.close()
        manager.adapters = make_worker_adapters(manager, ServingSettings())
        for stacked in all_stacked(manager):
            stacked.fill_(float("nan"))
        return manager

    return start_afresh


@pytest.fixture(scope="module")
def alone(use: Use, folders: dict[int, Path]) -> dict[int, Deltas]:
    """What each adapter gives in each layer, the first one in its slot."""
    found = {}
    for number, folder in folders.items():
        manager = use()
        load_all(manager.adapters, {number: folder})
        manager.adapters.execute([ActivateAdapter(number, 1)])
        found[number] = {name: y[0] for name, y in deltas(manager, [number]).items()}
    return found


@pytest.fixture
def manager(use: Use, folders: dict[int, Path], alone: dict[int, Deltas]) -> Iterator[Any]:
    """The manager with all adapters in host memory, none in a slot."""
    assert alone
    made = use()
    load_all(made.adapters, folders)
    yield made
    use()
    for module in made._adapter_manager.modules.values():
        for slot in range(SLOTS):
            module.reset_lora(slot)


def request(adapter_id: int, folder: Path) -> Any:
    """vLLM's name for an adapter."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"adapter-{adapter_id}", adapter_id, str(folder))


def places(manager: Any) -> dict[int, int]:
    """The slot of each adapter that is in one."""
    layout = manager._adapter_manager.lora_index_to_id
    return {number: slot for slot, number in enumerate(layout) if number is not None}


def test_both_ends_of_the_model_are_wrapped(lora_engine: Any) -> None:
    """So what this file says of all layers is said of the embedding and the output head too."""
    kinds = {type(module).__name__ for module in lora_engine.slots.modules.values()}
    assert {"VocabParallelEmbeddingWithLoRA", "LogitsProcessorWithLoRA"} <= kinds


def test_every_slot_gives_the_same_answer(manager: Any, alone: dict[int, Deltas]) -> None:
    """Each adapter in each slot, after another of any rank."""
    for number in RANKS:
        for slot in range(SLOTS):
            manager.adapters.execute([ActivateAdapter(number, slot)])
            assert slot == places(manager)[number]
            assert_as_alone(manager, alone, [number, 0])


@pytest.mark.parametrize("seed", range(3))
def test_any_history_leaves_every_adapter_whole(
    manager: Any,
    use: Use,
    folders: dict[int, Path],
    alone: dict[int, Deltas],
    seed: int,
) -> None:
    """100 activations, drops and resets: answers as alone, neighbours' bytes untouched.

    At the end each slot holds the bytes that a fresh manager writes there.
    """
    rng = random.Random(seed)
    for _ in range(100):
        number, slot = rng.choice(list(RANKS)), rng.randrange(SLOTS)
        before = {n: (s, slot_bytes(manager, s)) for n, s in places(manager).items()}
        manager.adapters.execute([ActivateAdapter(number, slot)])
        for neighbour, (former, old) in before.items():
            if neighbour != number and former != slot:
                assert former == places(manager)[neighbour]
                assert slot_bytes(manager, former) == old
        if rng.random() < 0.1:
            gone = rng.choice(list(places(manager)))
            manager.adapters.execute([DropAdapter(gone)])
            load_all(manager.adapters, {gone: folders[gone]})
        if rng.random() < 0.05:
            batch = {request(n, folders[n]) for n in places(manager)}
            manager.remove_all_adapters()
            manager._apply_adapters(batch)
        present = list(places(manager))
        assert_as_alone(manager, alone, rng.sample([*present, 0], len(present) + 1))
    last = places(manager)
    expected = {number: slot_bytes(manager, slot) for number, slot in last.items()}
    fresh = use()
    for number, slot in last.items():
        load_all(fresh.adapters, {number: folders[number]})
        fresh.adapters.execute([ActivateAdapter(number, slot)])
    assert expected == {number: slot_bytes(fresh, slot) for number, slot in last.items()}


def test_an_adapter_of_few_layers_leaves_nothing_of_the_former_tenant(manager: Any) -> None:
    """After rank 16 of all layers, one of rank 4 in up_proj: all else of the slot is zero."""
    manager.adapters.execute([ActivateAdapter(3, 0), ActivateAdapter(6, 0)])
    whole = slot_bytes(manager, 0)
    manager.adapters.forget_slots()
    manager.adapters.execute([ActivateAdapter(6, 0)])
    assert whole == slot_bytes(manager, 0)
    changed = {name for name, y in deltas(manager, [6]).items() if y.any()}
    assert {"gate_up_proj"} == {name.rpartition(".")[2] for name in changed}


def test_cleared_slots_are_filled_again_when_needed(
    manager: Any, folders: dict[int, Path], alone: dict[int, Deltas]
) -> None:
    """After a weight reload or a profile run each adapter is back in the very slot it had."""
    expected = {1: 0, 2: 1, 9: 2}
    manager.adapters.execute([ActivateAdapter(*place) for place in expected.items()])
    manager.remove_all_adapters()
    for stacked in all_stacked(manager):
        stacked.fill_(float("nan"))
    manager._apply_adapters({request(number, folders[number]) for number in (9, 2)})
    assert {2: 1, 9: 2} == places(manager)
    manager._apply_adapters({request(number, folders[number]) for number in expected})
    assert expected == places(manager)
    assert_as_alone(manager, alone, [*expected, 0])


@pytest.mark.parametrize("removes", [True, False])
def test_warm_up_between_steps_harms_nobody(
    manager: Any, folders: dict[int, Path], alone: dict[int, Deltas], removes: bool
) -> None:
    """vLLM fills all slots with its dummies, removes them or not; the next step heals."""
    expected = {4: 0, 2: 1, 5: 2}
    manager.adapters.execute([ActivateAdapter(*place) for place in expected.items()])
    dummies = {request(number, Path("/not/a/real/path")) for number in range(1, SLOTS + 1)}
    with manager.dummy_lora_cache():
        for dummy in dummies:
            manager.add_dummy_lora(dummy, rank=8)
        for _ in range(2):
            manager._apply_adapters(dummies)
            assert {1, 2, 3} == set(manager._adapter_manager.lora_index_to_id)
            deltas(manager, [1, 2, 3, 0])
    if removes:
        manager.remove_all_adapters()
    else:
        manager._adapter_manager._registered_adapters.clear()
    manager._apply_adapters({request(number, folders[number]) for number in expected})
    assert expected == places(manager)
    assert_as_alone(manager, alone, [*expected, 0])


def test_an_adapter_that_moved_is_not_in_its_old_slot(
    manager: Any, alone: dict[int, Deltas]
) -> None:
    """What another displaced is gone; what it moved to is where it is."""
    manager.adapters.execute([ActivateAdapter(2, 0), ActivateAdapter(1, 0)])
    assert {1: 0} == places(manager)
    manager.adapters.execute([ActivateAdapter(2, 0), ActivateAdapter(1, 2)])
    assert {2: 0, 1: 2} == places(manager)
    assert_as_alone(manager, alone, [1, 2, 0])


def test_an_evicted_adapters_promise_is_void(manager: Any, folders: dict[int, Path]) -> None:
    """One whose slot went to another does not come back and throw that one out."""
    manager.adapters.execute([ActivateAdapter(2, 0), ActivateAdapter(1, 0)])
    with pytest.raises(AdapterError, match="Adapter 2 is to run, but the scheduler gave it no"):
        manager._apply_adapters({request(number, folders[number]) for number in (1, 2)})
    assert {1: 0} == places(manager)


class StockReader:
    """Reads adapter 50 as one that only vLLM's own code can activate, all others as ever."""

    def __init__(self, worker_manager: Any, reader: Any) -> None:
        self._worker_manager = worker_manager
        self._reader = reader

    def read(self, command: LoadAdapter) -> ReadAdapter:
        """The adapter, in one form or the other."""
        if command.adapter_id != 50:
            read: ReadAdapter = self._reader.read_files(command)
            return read
        asked = request(command.adapter_id, Path(command.path))
        model = self._worker_manager._load_adapter(asked)
        self._worker_manager._adapter_manager._create_merged_loras_inplace(model)
        return ReadAdapter(StockCopy(model.id, model.rank, 1, model), "1")

    def keep(self, read: ReadAdapter) -> None:
        """Nothing is kept."""

    def close(self) -> None:
        """Of the reader behind."""
        self._reader.close()


def test_a_stock_copy_leaves_nothing_behind(
    manager: Any, folders: dict[int, Path], alone: dict[int, Deltas]
) -> None:
    """It takes the place of another, and another takes its."""
    old = manager.adapters
    reader: Any = StockReader(manager, old._reader)
    device = DeviceStore(ThreadCopier())
    manager.adapters = adapters = WorkerAdapters(
        Slots(manager._adapter_manager, device),
        Loader(reader),
        reader,
        device,
        Agreement(),
    )
    small = {1: 0, 4: 1, 6: 2}
    loaded = load_all(adapters, {number: folders[number] for number in small})
    adapters.execute([ActivateAdapter(*place) for place in small.items()])
    loaded |= load_all(adapters, {50: folders[1]})
    adapters.execute([ActivateAdapter(50, 1)])
    assert (RANKS[1], False, True) == (loaded[50].rank, loaded[50].is_packed, loaded[1].is_packed)
    assert {1: 0, 50: 1, 6: 2} == places(manager)
    assert_as_alone(manager, {**alone, 50: alone[1]}, [50, 6, 0])
    adapters.execute([ActivateAdapter(4, 1)])
    assert {1: 0, 4: 1, 6: 2} == places(manager)
    assert_as_alone(manager, alone, [4, 6, 0])
    found = slot_bytes(manager, 1)
    adapters.forget_slots()
    adapters.execute([ActivateAdapter(4, 1)])
    assert found == slot_bytes(manager, 1)
