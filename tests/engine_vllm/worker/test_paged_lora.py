"""Adapters used where they lie: each layer gives what it gives to an adapter with a slot of its own."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.engine_vllm.messages import ActivateAdapter
from chameleon_lora.settings import ServingSettings
from tests.engine_vllm.conftest import HIDDEN, VOCABULARY

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

from chameleon_lora.engine_vllm.worker.grouped_product import DTYPES, compiled  # noqa: E402
from chameleon_lora.engine_vllm.worker.lora_manager import make_worker_adapters  # noqa: E402
from chameleon_lora.engine_vllm.worker.paged_lora import FEW_ROWS, PagedAdapters  # noqa: E402
from tests.engine_vllm.adapter_commands import load_all  # noqa: E402
from tests.engine_vllm.layer_answers import Deltas, adapters_of, assert_alike, delta_of, deltas  # noqa: E402

RANKS = {1: 4, 2: 8, 3: 16, 4: 3, 5: 12}
TARGETS = {4: ("q_proj", "v_proj"), 5: ("k_proj", "down_proj")}
WITH_ENDS = (1, 3)  # adapters that change embedding and output head too
BATCHES = {
    "one": [3],
    "base": [0, 0],
    "apart": [1, 0, 2, 1, 5, 4, 3, 0, 2],
    "many": [3] * (FEW_ROWS + 1),
    "many apart": [2, 0, 4] * (FEW_ROWS + 1),
    "unknown": [1, 99, 2],
}


@pytest.fixture(scope="module")
def folders(make_adapter: Any) -> dict[int, Path]:
    """Adapters of ranks 3 to 16."""
    return adapters_of(make_adapter, RANKS, TARGETS, WITH_ENDS)


@pytest.fixture(scope="module")
def manager(lora_engine: Any, folders: dict[int, Path]) -> Iterator[Any]:
    """The engine's manager with all of them in host memory."""
    made = lora_engine.worker_manager
    made.remove_all_adapters()
    made.adapters.close()
    made.adapters = make_worker_adapters(made, ServingSettings())
    load_all(made.adapters, folders)
    yield made
    made.remove_all_adapters()


@pytest.fixture(scope="module")
def alone(manager: Any) -> dict[int, Deltas]:
    """What each adapter gives in each layer from a slot."""
    found = {}
    for number in RANKS:
        manager.adapters.execute([ActivateAdapter(number, 1)])
        found[number] = {name: y[0] for name, y in deltas(manager, [number]).items()}
    return found


@pytest.fixture(scope="module")
def paged(manager: Any, alone: dict[int, Deltas]) -> Iterator[PagedAdapters]:
    """The engine's layers with objects that multiply where adapters lie."""
    assert alone
    modules = manager._adapter_manager.modules
    wrappers = {name: module.punica_wrapper for name, module in modules.items()}
    made = PagedAdapters(modules, torch.float32)
    for packed in manager.adapters._copies.values():
        made.put(packed)
    yield made
    for name, module in modules.items():
        module.set_mapping(wrappers[name])
        vars(module).pop("forward", None)


@pytest.mark.parametrize("batch", BATCHES.values(), ids=BATCHES)
def test_each_row_has_what_its_adapter_gives_from_a_slot(
    paged: PagedAdapters, alone: dict[int, Deltas], batch: list[int]
) -> None:
    """Few rows and many, together and apart, at both ends of the model; base rows have nothing."""
    paged.select(batch, batch)
    answers = {name: delta_of(module, len(batch)) for name, module in paged.layers.items()}
    assert_alike(answers, alone, [number if number in RANKS else 0 for number in batch])


@pytest.mark.parametrize("kind", ["wider", "apart"])
@pytest.mark.parametrize("rows", [2, FEW_ROWS + 1])
def test_an_output_of_another_kind_is_added_to(paged: PagedAdapters, kind: str, rows: int) -> None:
    """Of another type, as logits may be, or with gaps in memory."""
    (module,) = (m for m in paged.layers.values() if type(m).__name__.startswith("LogitsProc"))
    x = torch.randn(rows, HIDDEN, generator=torch.Generator().manual_seed(5))
    paged.select([3] * rows, [3] * rows)
    expected, found = torch.zeros(rows, VOCABULARY), torch.zeros(rows, VOCABULARY)
    module.punica_wrapper.add_lora_logits(expected, x)
    found = found.double() if kind == "wider" else torch.zeros(VOCABULARY, rows).T
    module.punica_wrapper.add_lora_logits(found, x)
    assert expected.any()
    assert torch.equal(expected, found.float())


def test_an_adapter_that_went_and_came_is_used_from_its_new_place(
    manager: Any, paged: PagedAdapters, alone: dict[int, Deltas]
) -> None:
    """Though the batch is the same as before, in which another had its row of the table."""
    batch, copies = [2, 3], manager.adapters._copies
    paged.select(batch, batch)
    for number in batch:
        paged.drop(number)
    for number in reversed(batch):
        paged.put(copies[number])
    paged.select(batch, batch)
    answers = {name: delta_of(module, 2) for name, module in paged.layers.items()}
    assert_alike(answers, alone, batch)


def test_the_table_has_room_for_any_number(paged: PagedAdapters, manager: Any) -> None:
    """It grows, and those in it stay where they were."""
    from dataclasses import replace

    copies = manager.adapters._copies
    for number in range(100, 300):
        paged.put(replace(copies[2], adapter_id=number))
    paged.select([299, 2], [])
    first, second = paged.tokens.matrices.transpose(2, 0, 1)
    assert (first == second).all()
    for number in range(100, 300):
        paged.drop(number)


@st.composite
def batches(draw: st.DrawFn) -> tuple[list[int], list[int], list[list[int]]]:
    """For each slice its width; for each group its number of rows, and its rank in each slice."""
    widths = draw(st.lists(st.integers(1, 40), min_size=1, max_size=3))
    counts = draw(st.lists(st.integers(1, 5), min_size=1, max_size=4))
    ranks = [
        draw(st.lists(st.integers(0, 20), min_size=len(counts), max_size=len(counts)))
        for _ in widths
    ]
    return widths, counts, ranks


@pytest.fixture(scope="module")
def loops() -> dict[Any, Any]:
    """For each type, compiled once."""
    return {dtype: compiled(dtype) for dtype in DTYPES}


@given(batches(), st.sampled_from(DTYPES), st.integers(1, 70), st.randoms(use_true_random=False))
def test_the_loop_gives_the_products_of_each_rows_own_matrices(
    loops: dict[Any, Any], shape: Any, dtype: Any, inputs: int, rng: Any
) -> None:
    """Of any rank, none too; rows in any order; what is no group's is left alone."""
    widths, counts, ranks = shape
    generator = torch.Generator().manual_seed(rng.randrange(1 << 30))

    def numbers(*size: int) -> Any:
        return torch.randn(*size, generator=generator).to(dtype)

    total = sum(counts) + 2
    rows = rng.sample(range(total), sum(counts))
    x, y = numbers(total, inputs), numbers(total, sum(widths))
    pairs = [
        [(numbers(r, inputs), numbers(w, r)) for r in of]
        for w, of in zip(widths, ranks, strict=True)
    ]
    starts = [sum(counts[:g]) for g in range(len(counts) + 1)]
    begins = [sum(widths[:s]) for s in range(len(widths))]
    expected = y.float()
    for s, (begin, width) in enumerate(zip(begins, widths, strict=True)):
        for g, (a, b) in enumerate(pairs[s]):
            own = rows[starts[g] : starts[g + 1]]
            expected[own, begin : begin + width] += x[own].float() @ a.float().T @ b.float().T
    layer = np.array([len(widths), inputs, sum(widths), *begins, *widths], np.int64)
    matrices = np.array(
        [
            [[a.data_ptr() for a, _ in of], [b.data_ptr() for _, b in of], ranks[s]]
            for s, of in enumerate(pairs)
        ],
        np.int64,
    )
    batch = np.array([len(counts), *starts, *rows], np.int64)
    loops[dtype](
        x.data_ptr(), y.data_ptr(), layer.ctypes.data, matrices.ctypes.data, batch.ctypes.data
    )
    tolerance = 1e-4 if dtype == torch.float32 else 0.02
    torch.testing.assert_close(y.float(), expected, rtol=tolerance, atol=tolerance * 20)
