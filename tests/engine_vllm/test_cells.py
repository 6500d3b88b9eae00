"""How slots are divided into cells."""

from types import SimpleNamespace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.engine_vllm.cells import Cells, cells_of
from chameleon_lora.policy.settings import EngineLimits

PARTS = st.sampled_from((1, 2, 4, 8, 16))


@st.composite
def divisions(draw: st.DrawFn) -> Cells:
    """Any division a configuration can ask for."""
    parts = draw(PARTS)
    return Cells(draw(st.integers(1, 5)), parts, parts * draw(st.integers(1, 20)))


@given(divisions(), st.data())
def test_needed_cells_cover_the_rank_and_half_of_them_do_not(
    cells: Cells, data: st.DataObject
) -> None:
    """A power of two that divides a slot, and the smallest that is wide enough."""
    rank = data.draw(st.integers(1, cells.max_rank))
    needed = cells.needed(rank)
    width = cells.max_rank // cells.parts
    assert 0 == cells.parts % needed
    assert rank <= needed * width
    assert 1 == needed or needed // 2 * width < rank


@given(PARTS, st.integers(1, 300), st.integers(1, 300))
def test_the_policy_counts_the_same_cells(parts: int, max_rank: int, rank: int) -> None:
    """Where the parts divide the rank, as they always do in an engine."""
    max_rank *= parts
    table = EngineLimits(1, 1, 16, 1, slot_parts=parts, max_rank=max_rank).slot_table()
    assert table is not None
    assert table.cells_for(rank) == Cells(1, parts, max_rank).needed(rank)


@given(divisions())
def test_every_cell_has_its_own_ranks_of_one_slot(cells: Cells) -> None:
    """Slot and first rank of all cells are all different, and their widths fill the slots exactly."""
    width = cells.max_rank // cells.parts
    expected = [(slot, part * width) for slot in range(cells.slots) for part in range(cells.parts)]
    found = [(cells.slot(cell), cells.first_rank(cell)) for cell in range(cells.count)]
    assert expected == found
    assert cells.max_rank == cells.parts * width


@given(divisions(), st.data())
def test_an_aligned_window_never_crosses_slots(cells: Cells, data: st.DataObject) -> None:
    """From its first rank on there is room for the whole rank."""
    rank = data.draw(st.integers(1, cells.max_rank))
    needed = cells.needed(rank)
    for cell in range(0, cells.count, needed):
        assert cells.slot(cell) == cells.slot(cell + needed - 1)
        assert cells.first_rank(cell) + rank <= cells.max_rank


def test_one_part_is_one_adapter_a_slot() -> None:
    """Cells are slots then, whatever the rank."""
    cells = Cells(3, 1, 64)
    assert (3, 1, 1) == (cells.count, cells.needed(1), cells.needed(64))
    assert [(0, 0), (1, 0), (2, 0)] == [(cells.slot(i), cells.first_rank(i)) for i in range(3)]


@pytest.mark.vllm
@pytest.mark.parametrize(
    ("max_rank", "asked", "sharded", "runner", "parts"),
    [
        (16, 4, False, "generate", 4),
        (16, 1, False, "generate", 1),
        (8, 16, False, "generate", 8),
        (1, 4, False, "generate", 1),
        (20, 8, False, "generate", 4),
        (16, 4, True, "generate", 1),
        (16, 4, False, "pooling", 1),
    ],
)
def test_an_engine_gets_what_its_ranks_and_layers_allow(
    max_rank: int, asked: int, sharded: bool, runner: str, parts: int
) -> None:
    """No more parts than ranks, and vLLM's own way where rows' slots are read without the wrapper."""
    platforms = pytest.importorskip("vllm.platforms")
    if not platforms.current_platform.is_cpu():
        parts = 1
    lora = SimpleNamespace(max_loras=2, max_lora_rank=max_rank, fully_sharded_loras=sharded)
    config = SimpleNamespace(lora_config=lora, model_config=SimpleNamespace(runner_type=runner))
    assert Cells(2, parts, max_rank) == cells_of(config, asked)


@pytest.mark.vllm
def test_an_engine_without_lora_has_one_cell() -> None:
    """So that no caller needs to ask."""
    pytest.importorskip("vllm")
    assert Cells(1, 1, 1) == cells_of(SimpleNamespace(lora_config=None), 4)
