"""Where in the slots an adapter goes, by cells."""

from collections.abc import Sequence

import pytest

from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.memory.slots import SlotTable
from chameleon_lora.policy.plan import overlap
from chameleon_lora.policy.request import AdapterId
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import EngineLimits, PolicySettings
from tests.policy.engine_model import adapter


def equal(entries: Sequence[Entry]) -> list[float]:
    """All are worth the same."""
    return [0.0] * len(entries)


def by_id(entries: Sequence[Entry]) -> list[float]:
    """The higher the id, the more it is worth."""
    return [float(entry.adapter.id) for entry in entries]


def tenant(table: SlotTable, number: int, cell: int, cells: int = 1, running: int = 0) -> Entry:
    """An adapter in these cells."""
    entry = Entry(adapter(number), cells=cells)
    table.put(entry, cell)
    if running:
        entry.running = running
        table.add_busy(cells)
    return entry


@pytest.mark.parametrize(
    ("rank", "cells"), [(1, 1), (16, 1), (17, 2), (32, 2), (33, 4), (64, 4), (999, 4)]
)
def test_cells_are_a_power_of_two_that_covers_the_rank(rank: int, cells: int) -> None:
    """With four cells of rank 16 a slot; never more than one slot."""
    assert cells == SlotTable(2, 4, 64).cells_for(rank)


def test_one_cell_a_slot_is_one_adapter_a_slot() -> None:
    """Whatever the rank."""
    assert 1 == SlotTable(2, 1, 64).cells_for(64)


def test_windows_are_aligned() -> None:
    """Two cells go to 2..3, not to 1..2, when cell 0 is in use."""
    table = SlotTable(1, 4, 64)
    tenant(table, 1, 0, running=1)
    assert 2 == table.try_find(2, (), equal)


def test_free_cells_in_a_slot_that_is_begun_come_first() -> None:
    """A small adapter goes beside another, so that whole slots stay whole."""
    table = SlotTable(2, 2, 64)
    tenant(table, 1, 2)
    assert 3 == table.try_find(1, (), equal)


def test_least_worth_keeping_goes() -> None:
    """With all cells taken and idle, the cheapest window is that of the adapter worth least."""
    table = SlotTable(3, 1, 64)
    for cell, number in enumerate((7, 5, 6)):
        tenant(table, number, cell)
    assert 1 == table.try_find(1, (), by_id)


def test_no_window_without_a_busy_cell() -> None:
    """Two free cells of different slots are no room for two, until the busy ones are idle."""
    table = SlotTable(2, 2, 64)
    busy = [tenant(table, number, 2 * number, running=1) for number in range(2)]
    assert table.try_find(2, (), equal) is None
    assert table.try_find(2, (), equal) is None  # known by now
    busy[1].running = 0
    table.add_busy(-1)
    assert 2 == table.try_find(2, (), equal)


def test_too_few_idle_cells_are_no_room() -> None:
    """With every cell in use there is none."""
    table = SlotTable(1, 1, 64)
    tenant(table, 1, 0, running=1)
    assert table.try_find(1, (), equal) is None


def test_promised_windows_are_avoided() -> None:
    """What is promised to another is not found, even if it is the only one."""
    table = SlotTable(2, 1, 64)
    assert 1 == table.try_find(1, (range(1),), equal)
    assert table.try_find(1, (range(2),), equal) is None


def test_first_to_end_is_the_window_whose_last_ends_first() -> None:
    """A window is free when the last in it has ended: 9 and 2 make 9, 5 and idle make 5."""
    table = SlotTable(2, 2, 64)
    left: dict[AdapterId | None, int] = {AdapterId(1): 9, AdapterId(2): 2, AdapterId(3): 5}
    for cell in range(3):
        tenant(table, cell + 1, cell, running=1)
    tenant(table, 4, 3)
    ends = table.by_cell(left)
    assert [9, 2, 5, 0] == ends
    assert (range(2, 4), 5) == table.first_to_end(2, ends, ())
    assert (range(2), 9) == table.first_to_end(2, ends, (range(3, 4),))
    assert table.first_to_end(2, ends, (range(4),)) is None


def test_removed_adapters_leave_their_cells() -> None:
    """All of them; removing one that is in no slot changes nothing."""
    table = SlotTable(1, 4, 64)
    entry = tenant(table, 1, 0, cells=2)
    assert [entry] == table.at(range(4))
    table.remove(entry)
    table.remove(entry)
    assert [] == table.at(range(4))
    assert entry.cell is None


def test_overlap_is_of_half_open_ranges() -> None:
    """0..2 and 2..4 share nothing."""
    assert not overlap(range(2), range(2, 4))
    assert overlap(range(3), range(2, 4))


@pytest.mark.parametrize("kind", ["table", "pages"])
def test_with_or_without_slots_an_empty_engine_answers_alike(kind: str) -> None:
    """There is a place for anybody, nobody is in it, and nothing is about to come free."""
    limits = EngineLimits(
        seats=1, slots=1, kv_tokens=160, kv_bytes_per_token=1, is_paged=kind == "pages"
    )
    slots = Scheduler(PolicySettings(), limits)._residency.slots
    left_tokens = slots.by_cell({})
    assert 0 == slots.try_find(slots.cells_for(8), [], equal)
    assert ([], []) == (slots.in_use(), slots.at(range(1)))
    assert not any(left_tokens)
    assert None is slots.first_to_end(1, left_tokens, [range(1)])
