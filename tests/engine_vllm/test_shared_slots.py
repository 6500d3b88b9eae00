"""Adapters that share a slot: each layer gives what it gives to an adapter with a slot of its own."""

import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.engine_vllm.cells import Cells
from chameleon_lora.engine_vllm.messages import (
    ActivateAdapter,
    DropAdapter,
    LoadAdapter,
)
from chameleon_lora.errors import AdapterError
from chameleon_lora.settings import ServingSettings
from tests.engine_vllm.conftest import CELLS, MAX_RANK, SLOTS

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
    contents,
    deltas,
    slot_bytes,
)

QUARTERS = Cells(SLOTS, 4, MAX_RANK)
RANKS = {1: 4, 2: 8, 3: 16, 4: 4, 5: 8, 6: 4, 7: 3, 8: 4, 9: 12, 10: 4}
TARGETS = {4: ("q_proj", "v_proj"), 5: ("k_proj", "down_proj"), 6: ("up_proj",)}
WITH_ENDS = (1, 2, 3, 8)  # adapters that change embedding and output head too


@pytest.fixture(scope="module")
def folders(make_adapter: Any) -> dict[int, Path]:
    """Ten adapters of ranks 3 to 16."""
    return adapters_of(make_adapter, RANKS, TARGETS, WITH_ENDS)


Use = Callable[[Cells], Any]


@pytest.fixture(scope="module")
def use(lora_engine: Any) -> Use:
    """Gives the engine a manager that knows nothing, over slots of this division full of NaN."""

    def start_afresh(cells: Cells) -> Any:
        manager = lora_engine.worker_manager
        manager.remove_all_adapters()
        manager.adapters.close()
        manager.adapters = make_worker_adapters(manager, cells, ServingSettings())
        for stacked in all_stacked(manager):
            stacked.fill_(float("nan"))
        return manager

    return start_afresh


@pytest.fixture(scope="module")
def alone(use: Use, folders: dict[int, Path]) -> dict[int, Deltas]:
    """What each adapter gives in each layer with a slot of its own, the vLLM way."""
    manager = use(CELLS)
    found = {}
    for number, folder in folders.items():
        load_all(manager.adapters, {number: folder})
        manager.adapters.execute([ActivateAdapter(number, 1)])
        found[number] = {name: y[0] for name, y in deltas(manager, [number]).items()}
    return found


@pytest.fixture
def manager(use: Use, folders: dict[int, Path], alone: dict[int, Deltas]) -> Iterator[Any]:
    """The manager over slots of four cells, all adapters in host memory, none in a slot."""
    assert alone
    made = use(QUARTERS)
    load_all(made.adapters, folders)
    yield made
    use(CELLS)
    for module in made._adapter_manager.modules.values():
        for slot in range(SLOTS):
            module.reset_lora(slot)


def request(adapter_id: int, folder: Path) -> Any:
    """vLLM's name for an adapter."""
    from vllm.lora.request import LoRARequest

    return LoRARequest(f"adapter-{adapter_id}", adapter_id, str(folder))


def windows(manager: Any) -> dict[int, range]:
    """The cells of each adapter that is in a slot."""
    layout = manager._adapter_manager.lora_index_to_id
    return {
        number: range(cell, cell + QUARTERS.needed(RANKS[number]))
        for cell, number in enumerate(layout)
        if number is not None
    }


def test_both_ends_of_the_model_are_wrapped(lora_engine: Any) -> None:
    """So what this file says of all layers is said of the embedding and the output head too."""
    kinds = {type(module).__name__ for module in lora_engine.slots.modules.values()}
    assert {"VocabParallelEmbeddingWithLoRA", "LogitsProcessorWithLoRA"} <= kinds


def test_every_cell_gives_the_same_answer(manager: Any, alone: dict[int, Deltas]) -> None:
    """Each adapter at each cell it may begin at, among neighbours of any kind."""
    for number, rank in RANKS.items():
        for cell in range(0, QUARTERS.count, QUARTERS.needed(rank)):
            manager.adapters.execute([ActivateAdapter(number, cell)])
            assert cell == manager._adapter_manager.lora_index_to_id.index(number)
            assert_as_alone(manager, alone, [number, 0])


def test_a_batch_mixes_more_adapters_than_slots(manager: Any, alone: dict[int, Deltas]) -> None:
    """Seven adapters and the base model in three slots, rows in any order."""
    places = {3: 0, 2: 4, 1: 6, 4: 7, 6: 8, 8: 9, 5: 10}
    manager.adapters.execute([ActivateAdapter(*place) for place in places.items()])
    batch = [5, 1, 0, 3, 6, 8, 4, 2, 0, 5, 3]
    assert_as_alone(manager, alone, batch)


@pytest.mark.parametrize("seed", range(3))
def test_any_history_leaves_every_adapter_whole(
    manager: Any,
    use: Use,
    folders: dict[int, Path],
    alone: dict[int, Deltas],
    seed: int,
) -> None:
    """100 activations, drops and resets: answers as alone, neighbours' bytes untouched.

    At the end each window holds the bytes that a fresh manager writes there.
    """
    rng = random.Random(seed)
    for _ in range(100):
        number = rng.choice(list(RANKS))
        cell = rng.randrange(0, QUARTERS.count, QUARTERS.needed(RANKS[number]))
        before = {n: (w, contents(manager, QUARTERS, w)) for n, w in windows(manager).items()}
        manager.adapters.execute([ActivateAdapter(number, cell)])
        taken = range(cell, cell + QUARTERS.needed(RANKS[number]))
        for neighbour, (window, old) in before.items():
            if neighbour != number and not set(window) & set(taken):
                assert windows(manager)[neighbour] == window
                assert contents(manager, QUARTERS, window) == old
        if rng.random() < 0.1:
            gone = rng.choice(list(windows(manager)))
            manager.adapters.execute([DropAdapter(gone)])
            load_all(manager.adapters, {gone: folders[gone]})
        if rng.random() < 0.05:
            batch = {request(n, folders[n]) for n in windows(manager)}
            manager.remove_all_adapters()
            manager._apply_adapters(batch)
        present = list(windows(manager))
        assert_as_alone(manager, alone, rng.sample([*present, 0], len(present) + 1))
    places = windows(manager)
    expected = {number: contents(manager, QUARTERS, window) for number, window in places.items()}
    fresh = use(QUARTERS)
    for number, window in places.items():
        load_all(fresh.adapters, {number: folders[number]})
        fresh.adapters.execute([ActivateAdapter(number, window.start)])
    assert expected == {
        number: contents(fresh, QUARTERS, window) for number, window in places.items()
    }


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
    """After a weight reload or a profile run each adapter is back in the very cells it had."""
    places = {1: 0, 2: 2, 4: 5, 9: 8}
    manager.adapters.execute([ActivateAdapter(*place) for place in places.items()])
    expected = windows(manager)
    manager.remove_all_adapters()
    for stacked in all_stacked(manager):
        stacked.fill_(float("nan"))
    manager._apply_adapters({request(number, folders[number]) for number in (9, 2)})
    assert {2: expected[2], 9: expected[9]} == windows(manager)
    manager._apply_adapters({request(number, folders[number]) for number in places})
    assert expected == windows(manager)
    assert_as_alone(manager, alone, [*places, 0])


@pytest.mark.parametrize("removes", [True, False])
def test_warm_up_between_steps_harms_nobody(
    manager: Any, folders: dict[int, Path], alone: dict[int, Deltas], removes: bool
) -> None:
    """vLLM fills all slots with its dummies, one a slot, removes them or not; the next step heals."""
    places = {1: 0, 4: 1, 2: 2, 3: 4, 5: 8, 6: 10}
    manager.adapters.execute([ActivateAdapter(*place) for place in places.items()])
    expected = windows(manager)
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
    manager._apply_adapters({request(number, folders[number]) for number in places})
    assert expected == windows(manager)
    assert_as_alone(manager, alone, [*places, 0])


def test_an_adapter_that_moved_is_not_in_its_old_cells(
    manager: Any, alone: dict[int, Deltas]
) -> None:
    """What a narrower one displaced is gone as a whole; what it moved to is where it is."""
    manager.adapters.execute([ActivateAdapter(2, 0), ActivateAdapter(1, 1)])
    assert {1: range(1, 2)} == windows(manager)
    manager.adapters.execute([ActivateAdapter(2, 2), ActivateAdapter(1, 0)])
    assert {1: range(1), 2: range(2, 4)} == windows(manager)
    assert_as_alone(manager, alone, [1, 2, 0])


def test_an_evicted_adapters_promise_is_void(manager: Any, folders: dict[int, Path]) -> None:
    """One whose cells went to another in part does not come back and throw that one out."""
    manager.adapters.execute([ActivateAdapter(2, 0), ActivateAdapter(1, 1)])
    with pytest.raises(AdapterError, match="Adapter 2 is to run, but the scheduler gave it no"):
        manager._apply_adapters({request(number, folders[number]) for number in (1, 2)})
    assert {1: range(1, 2)} == windows(manager)


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


def test_a_stock_copy_has_a_slot_for_itself(
    manager: Any, folders: dict[int, Path], alone: dict[int, Deltas]
) -> None:
    """It says that it needs the whole rank, evicts all of its slot and leaves nothing behind."""
    old = manager.adapters
    reader: Any = StockReader(manager, old._reader)
    device = DeviceStore(ThreadCopier())
    manager.adapters = adapters = WorkerAdapters(
        Slots(manager._adapter_manager, QUARTERS, device),
        Loader(reader),
        reader,
        device,
        Agreement(),
    )
    small = {1: 4, 4: 5, 2: 6, 6: 8}
    loaded = load_all(adapters, {number: folders[number] for number in small})
    adapters.execute([ActivateAdapter(*place) for place in small.items()])
    loaded |= load_all(adapters, {50: folders[1]})
    adapters.execute([ActivateAdapter(50, 4)])
    assert (MAX_RANK, False, True) == (loaded[50].rank, loaded[50].is_packed, loaded[1].is_packed)
    layout = manager._adapter_manager.lora_index_to_id
    assert {4: 50, 8: 6} == {cell: number for cell, number in enumerate(layout) if number}
    assert_as_alone(manager, {**alone, 50: alone[1]}, [50, 6, 0])
    adapters.execute([ActivateAdapter(4, 7)])
    assert {7: 4, 8: 6} == {cell: number for cell, number in enumerate(layout) if number}
    assert_as_alone(manager, alone, [4, 6, 0])
    expected = contents(manager, QUARTERS, range(4, 7))
    assert not any(expected)


def test_one_batch_answers_as_each_alone(
    lora_engine: Any, manager: Any, folders: dict[int, Path]
) -> None:
    """The engine's own tokens: three adapters in one slot, and the base model beside them."""
    from vllm import SamplingParams

    prompt = {"prompt_token_ids": [5, 9, 17, 3]}
    greedy = SamplingParams(max_tokens=8, temperature=0.0, ignore_eos=True, detokenize=False)

    def answers(requests: list[Any]) -> list[list[int]]:
        outputs = lora_engine.llm.generate(
            [prompt] * len(requests), greedy, lora_request=requests, use_tqdm=False
        )
        return [list(output.outputs[0].token_ids) for output in outputs]

    named = [request(number, folders[number]) for number in (1, 4, 2)]
    expected = []
    for one in named:
        manager.adapters.execute([ActivateAdapter(one.lora_int_id, 0)])
        expected += answers([one])
    expected += answers([None])
    manager.adapters.execute([ActivateAdapter(1, 4), ActivateAdapter(4, 5), ActivateAdapter(2, 6)])
    assert expected == answers([*named, None])
    assert {1: range(4, 5), 4: range(5, 6), 2: range(6, 8)} == windows(manager)
    assert 4 == len({tuple(answer) for answer in expected})
