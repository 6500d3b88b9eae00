"""LoRA arithmetic on CPU: base rows stay base, and neighbours in a slot never meet."""

from collections.abc import Sequence
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.cells import Cells

torch = pytest.importorskip("torch")
pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm]

from chameleon_lora.engine_vllm.worker.cpu_punica import (  # noqa: E402
    CellMasks,
    adopt,
    wrapper_class,
)

RANK, INPUTS, OUTPUTS, VOCABULARY = 8, 6, 5, 11
WHOLE = Cells(2, 1, RANK)
SHARED = Cells(2, 4, RANK)
OPERATIONS = ("linear", "embedding", "logits")
NAN = float("nan")


class Layer:
    """One layer's slots, full of large random numbers, as vLLM lays them out."""

    def __init__(self, slots: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        self.a = 10 * torch.randn(slots, 1, RANK, INPUTS, generator=generator)
        self.b = 10 * torch.randn(slots, 1, OUTPUTS, RANK, generator=generator)
        self.table = 10 * torch.randn(slots, VOCABULARY, RANK, generator=generator)

    def without_neighbours(self, cells: Cells, cell: int) -> "Layer":
        """This layer when the slot of a cell holds nothing but the cell's own ranks."""
        width = cells.max_rank // cells.parts
        first = cells.first_rank(cell)
        kept = torch.zeros(RANK, dtype=torch.bool)
        kept[first : first + width] = True
        alone, slot = Layer(cells.slots), cells.slot(cell)
        for name in ("a", "b", "table"):
            setattr(alone, name, getattr(self, name).clone())
        alone.a[slot, 0][~kept] = 0
        alone.b[slot, 0][:, ~kept] = 0
        alone.table[slot][:, ~kept] = 0
        return alone

    def run(self, operation: str, punica: Any, rows: Any, output: Any) -> Any:
        """What the layer makes of these rows' inputs (token numbers for an embedding)."""
        y = output.clone()
        if operation == "linear":
            punica.add_lora_linear(y, rows, (self.a,), (self.b,), 1.0, (OUTPUTS,))
        elif operation == "logits":
            punica.add_lora_logits(y, rows, self.a, self.b, 1.0)
        else:
            starts = punica._embeddings_indices.view(-1, punica._embeddings_indices.shape[-1])[-1]
            picked = self.table.view(-1, RANK)[tokens_of(rows) + starts[: len(rows)]]
            before = picked.clone()
            punica.add_lora_embedding(y, picked, self.b, add_input=True)
            assert torch.equal(before.nan_to_num(), picked.nan_to_num())
        return y


def tokens_of(rows: Any) -> Any:
    """A token for each row, made of its first input."""
    return (rows[:, 0].abs() * 1000).long() % VOCABULARY


def kernels() -> Any:
    """vLLM's torch-native LoRA kernels."""
    from vllm.lora.ops.torch_ops import lora_ops

    return lora_ops


def full_masks(cells: Cells) -> CellMasks:
    """Each cell has an adapter that fills it."""
    masks = CellMasks(cells)
    for cell in range(cells.count):
        masks.set(cell, cells.max_rank // cells.parts)
    return masks


def wrapper(
    kind: type[Any], cells: Cells, cell_of_row: Sequence[int], masks: CellMasks | None = None
) -> Any:
    """The wrapper, told of a batch; -1 is a row of the base model."""
    from vllm.lora.layers import LoRAMapping

    made = kind(64, 16, device="cpu")
    made.masks = masks or full_masks(cells)
    tell(made, LoRAMapping, cells, cell_of_row)
    return made


def tell(punica: Any, mapping: Any, cells: Cells, cell_of_row: Sequence[int]) -> None:
    """Which adapter each row has: the adapter in cell c has the id c + 1."""
    ids = tuple(cell + 1 for cell in cell_of_row)
    layout = [cell + 1 for cell in range(cells.count)]
    punica.update_metadata(mapping(ids, ids, is_prefill=True), layout, cells.slots + 1, VOCABULARY)


def stock_wrapper(slots: int, slot: int) -> Any:
    """vLLM's own, for one row of one slot."""
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    return wrapper(PunicaWrapperCPU, Cells(slots, 1, RANK), [slot])


def batch(rows: int) -> tuple[Any, Any]:
    """Inputs, and an output that is not zero."""
    generator = torch.Generator().manual_seed(1)
    shape = (rows, INPUTS)
    return torch.randn(shape, generator=generator), torch.randn(rows, OUTPUTS, generator=generator)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize(
    ("cells", "cell_of_row"),
    [(WHOLE, [1, -1, 0, -1, 1]), (SHARED, [7, -1, 0, 5, -1, 3, 2, 7]), (SHARED, [6, 1, 0])],
)
def test_base_rows_keep_every_bit_and_others_get_their_own_adapter(
    operation: str, cells: Cells, cell_of_row: list[int]
) -> None:
    """A row with an adapter is what vLLM computes for it with nothing else in the slot."""
    layer = Layer(cells.slots)
    inputs, output = batch(len(cell_of_row))
    found = layer.run(operation, wrapper(wrapper_class(), cells, cell_of_row), inputs, output)
    for row, cell in enumerate(cell_of_row):
        one = slice(row, row + 1)
        if cell < 0:
            assert torch.equal(output[row], found[row]), row
            continue
        alone = layer.without_neighbours(cells, cell)
        stock = stock_wrapper(cells.slots, cells.slot(cell))
        expected = alone.run(operation, stock, inputs[one], output[one])[0]
        torch.testing.assert_close(found[row], expected, rtol=1e-6, atol=1e-4)


@pytest.mark.parametrize("operation", OPERATIONS)
@pytest.mark.parametrize("cells", [WHOLE, SHARED])
def test_a_batch_of_base_rows_computes_nothing(operation: str, cells: Cells) -> None:
    """Not even NaN in every slot can reach it."""
    layer = Layer(cells.slots)
    for tensor in (layer.a, layer.b, layer.table):
        tensor.fill_(NAN)
    inputs, output = batch(4)
    found = layer.run(operation, wrapper(wrapper_class(), cells, [-1] * 4), inputs, output)
    assert torch.equal(output, found)


@pytest.mark.parametrize("operation", OPERATIONS)
def test_nan_in_another_slot_reaches_nobody(operation: str) -> None:
    """Rows of slot 0 are finite, base rows untouched, though all of slot 1 is NaN."""
    layer = Layer(2)
    for tensor in (layer.a, layer.b, layer.table):
        tensor[1] = NAN
    inputs, output = batch(3)
    found = layer.run(operation, wrapper(wrapper_class(), SHARED, [0, -1, 3]), inputs, output)
    assert found.isfinite().all()
    assert torch.equal(output[1], found[1])


@pytest.mark.parametrize("bad", [NAN, float("inf")])
@pytest.mark.parametrize("operation", OPERATIONS)
def test_nan_in_a_neighbours_a_reaches_nobody(operation: str, bad: float) -> None:
    """What a neighbour's A contributes is put to zero, not multiplied by zero."""
    layer = Layer(2)
    cell = 1
    clean = layer.without_neighbours(SHARED, cell)
    foreign = [0, 1, 4, 5, 6, 7]  # ranks of slot 0 that are not cell 1's
    layer.a[0, 0, foreign] = bad
    layer.table[0][:, foreign] = bad
    inputs, output = batch(2)
    punica = wrapper(wrapper_class(), SHARED, [cell, -1])
    found = layer.run(operation, punica, inputs, output)
    expected = clean.run(operation, punica, inputs, output)
    assert torch.equal(expected, found)


def test_nan_in_a_neighbours_b_would_cross() -> None:
    """0 * NaN is NaN: why `pack` refuses weights that are not finite."""
    layer = Layer(2)
    layer.b[0, 0, 0, 7] = NAN
    inputs, output = batch(1)
    found = layer.run("linear", wrapper(wrapper_class(), SHARED, [0]), inputs, output)
    assert found[0, 0].isnan()


@pytest.mark.parametrize("operation", OPERATIONS)
def test_one_row_reads_its_own_cell(operation: str) -> None:
    """A step of one token, whose metadata have one column in every vLLM."""
    layer = Layer(2)
    inputs, output = batch(1)
    found = layer.run(operation, wrapper(wrapper_class(), SHARED, [6]), inputs, output)
    alone = layer.without_neighbours(SHARED, 6)
    expected = alone.run(operation, stock_wrapper(2, 1), inputs, output)
    torch.testing.assert_close(found, expected, rtol=1e-6, atol=1e-4)


def test_an_adapter_of_several_cells_has_all_their_ranks() -> None:
    """Rank 3 in two cells of rank 2: ranks 4 to 6 of the slot and no other."""
    masks = CellMasks(SHARED)
    masks.set(2, 3)
    rows = masks.select(torch.tensor([2]))
    assert rows.foreign is not None
    assert [True] * 4 + [False] * 3 + [True] == rows.foreign[0].tolist()


def test_a_cells_next_adapter_has_its_own_rank() -> None:
    """Nothing of a wider former tenant stays open."""
    masks = CellMasks(SHARED)
    masks.set(4, 8)
    masks.set(4, 1)
    rows = masks.select(torch.tensor([-1, 4]))
    assert rows.foreign is not None
    assert rows.picked is not None
    assert [False] + [True] * 7 == rows.foreign[0].tolist()
    assert ([1], [1]) == (rows.picked.tolist(), rows.slot.tolist())


def test_nothing_is_copied_where_all_rows_have_an_adapter() -> None:
    """`take` answers the tensor itself, and undivided slots need no mask."""
    rows = CellMasks(WHOLE).select(torch.tensor([1, 0]))
    tensor = torch.ones(2, 3)
    assert rows.take(tensor) is tensor
    assert (None, None) == (rows.picked, rows.foreign)


def test_adoption_is_made_once_and_again_for_other_masks() -> None:
    """A batch's rows survive a second adoption; new masks make vLLM map its batch anew."""
    from vllm.lora.layers import LoRAMapping
    from vllm.lora.punica_wrapper.punica_cpu import PunicaWrapperCPU

    punica = PunicaWrapperCPU(64, 16, device="cpu")
    manager = SimpleNamespace(
        punica_wrapper_mapping={"language": punica, "tower": punica}, _last_mapping="a batch"
    )
    masks = full_masks(SHARED)
    adopt(manager, masks)
    assert isinstance(punica, wrapper_class())
    assert manager._last_mapping is None
    assert 0 == punica.tokens.slot.numel()
    tell(punica, LoRAMapping, SHARED, [5, -1])
    manager._last_mapping, rows = "the next", punica.tokens
    adopt(manager, masks)
    assert rows is punica.tokens
    assert "the next" == manager._last_mapping
    adopt(manager, full_masks(SHARED))
    assert manager._last_mapping is None


def test_without_the_guard_the_last_slot_leaks() -> None:
    """vLLM's own kernel changes a base row: the day it does not, rows need no picking."""
    layer = Layer(2)
    inputs, output = batch(3)
    slots = torch.tensor([1, -1, 0])
    buffer = torch.zeros(3, RANK)
    kernels().bgmv_shrink(inputs, layer.a, buffer, slots, 1.0)
    found = output.clone()
    kernels().bgmv_expand(buffer, layer.b, found, slots, True)
    assert not torch.equal(output[1], found[1])
    guarded = layer.run("linear", wrapper(wrapper_class(), WHOLE, [1, -1, 0]), inputs, output)
    assert torch.equal(output[1], guarded[1])
