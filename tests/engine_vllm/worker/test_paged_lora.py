"""Adapters used where they lie: each layer gives what it gives to an adapter with a slot of its own."""

import functools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from copy import copy
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.engine_vllm.messages import ActivateAdapter
from chameleon_lora.errors import AdapterUnfitError
from chameleon_lora.settings import ServingSettings
from tests.engine_vllm.conftest import HIDDEN, VOCABULARY

torch = pytest.importorskip("torch")
np = pytest.importorskip("numpy")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

from chameleon_lora.engine_vllm.worker.grouped_product import DTYPES, compiled  # noqa: E402
from chameleon_lora.engine_vllm.worker.loader import VllmReader  # noqa: E402
from chameleon_lora.engine_vllm.worker.lora_manager import make_worker_adapters  # noqa: E402
from chameleon_lora.engine_vllm.worker.packed_adapter import PackedAdapter  # noqa: E402
from chameleon_lora.engine_vllm.worker.paged_lora import FEW_ROWS, PagedAdapters  # noqa: E402
from tests.engine_vllm.adapter_commands import load, load_all  # noqa: E402
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


@pytest.mark.parametrize("few", [FEW_ROWS, 0], ids=["loop", "torch"])
def test_logits_of_a_prompt_have_what_its_adapter_gives(paged: PagedAdapters, few: int) -> None:
    """With `prompt_logprobs` the head is given a part of the model's states, of any number of rows."""
    (module,) = (m for m in paged.layers.values() if type(m).__name__.startswith("LogitsProc"))
    states = torch.randn(10, HIDDEN, generator=torch.Generator().manual_seed(5))
    of_tokens = [1, 1, 1, 3, 3, 3, 0, 2, 3, 1]
    parts = (slice(0, 2), slice(3, 5), slice(3, 6), slice(6, 7), slice(0, 10))
    with few_rows(paged, few):
        paged.select(of_tokens, of_tokens)
        right = torch.zeros(10, VOCABULARY)
        module.punica_wrapper.add_lora_logits(right, states.clone())
        paged.select(of_tokens, [1, 3, 0, 2, 3, 1])
        for part in parts:
            found = torch.zeros(12, VOCABULARY)
            module.punica_wrapper.add_lora_logits(found[: part.stop - part.start], states[part])
            expected = torch.zeros_like(found)
            expected[: part.stop - part.start] = right[part]
            torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)


def test_a_layer_behind_the_pooler_has_a_row_for_each_request(paged: PagedAdapters) -> None:
    """Of a batch of longer prompts; another number of rows is nobody's, and an error if it changed something."""
    module = paged.layers["model.layers.0.self_attn.o_proj"]
    x = torch.randn(2, HIDDEN, generator=torch.Generator().manual_seed(5))
    right, found = torch.zeros(2, HIDDEN), torch.zeros(6, HIDDEN)
    paged.select([1, 3], [1, 3])
    module.punica_wrapper.add_lora_linear(right, x)
    paged.select([1, 1, 3, 3, 3], [1, 3])
    module.punica_wrapper.add_lora_linear(found[:2], x)
    torch.testing.assert_close(found[:2], right, rtol=1e-4, atol=1e-4)
    with pytest.raises(RuntimeError, match="o_proj was given 3 rows of a batch of 5"):
        module.punica_wrapper.add_lora_linear(found[:3], torch.cat([x, x[:1]]))
    paged.select([4] * 5, [4])  # of q_proj and v_proj
    module.punica_wrapper.add_lora_linear(found[:3], torch.cat([x, x[:1]]))
    assert not found[2:].any()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16], ids=["no-numba", "float16"])
def test_torch_multiplies_what_has_no_loop(
    paged: PagedAdapters,
    manager: Any,
    alone: dict[int, Deltas],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    dtype: Any,
) -> None:
    """As where numba is absent, which is said; float16 has no loop anywhere, which is no news."""
    if dtype == torch.float32:
        monkeypatch.setitem(sys.modules, "numba", None)
        monkeypatch.delitem(sys.modules, compiled.__module__)
    wrappers = {name: module.punica_wrapper for name, module in paged.layers.items()}
    without = PagedAdapters(paged.layers, dtype)
    try:
        assert without.loop is None
        assert [dtype == torch.float32] == [bool(caplog.records)]
        if dtype == torch.float32:
            assert "numba does not compile" in caplog.text
            for packed in manager.adapters._copies.values():
                without.put(packed)
            batch = BATCHES["apart"]
            without.select(batch, batch)
            answers = {name: delta_of(module, len(batch)) for name, module in paged.layers.items()}
            assert_alike(answers, alone, batch)
    finally:
        for name, module in paged.layers.items():
            module.set_mapping(wrappers[name])
            if "Embedding" in type(module).__name__:
                module.forward = functools.partial(wrappers[name].embed, module.base_layer)


def test_an_adapter_for_a_layer_of_unknown_kind_is_refused_and_names_it(
    paged: PagedAdapters, manager: Any, folders: dict[int, Path]
) -> None:
    """One without weights for that layer is taken."""
    odd = "model.layers.1.mlp.down_proj"
    worker, slots, others = copy(manager), copy(manager._adapter_manager), copy(paged)
    module = copy(slots.modules[odd])
    module.__class__ = type("UnknownWithLoRA", (type(module),), {})
    slots.modules = {**slots.modules, odd: module}
    others.layers = {name: layer for name, layer in paged.layers.items() if name != odd}
    slots.paged, worker._adapter_manager = others, slots
    reader = VllmReader(worker, None)
    assert isinstance(reader.read_files(load(4, folders[4])).host_copy, PackedAdapter)
    words = (
        rf"its weights for '{odd}' .* slots only; way out: .*lora_backend = 'slots', or train it"
    )
    with pytest.raises(AdapterUnfitError, match=words):
        reader.read_files(load(1, folders[1]))


@contextmanager
def few_rows(paged: PagedAdapters, most: int) -> Iterator[None]:
    """Meanwhile the loop has groups of at most so many rows, torch the others."""
    before, paged._few = paged._few, most
    paged._mapped = None
    yield
    paged._few = before


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
