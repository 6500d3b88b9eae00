"""Which slot an adapter goes to."""

from collections.abc import Sequence

import pytest

from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.memory.slots import SlotTable
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


def tenant(table: SlotTable, number: int, slot: int, running: int = 0) -> Entry:
    """An adapter in this slot."""
    entry = Entry(adapter(number))
    table.put(entry, slot)
    if running:
        entry.running = running
        table.add_busy(1)
    return entry


def test_least_worth_keeping_goes() -> None:
    """With all slots taken and idle, the cheapest is that of the adapter worth least."""
    table = SlotTable(3)
    for slot, number in enumerate((7, 5, 6)):
        tenant(table, number, slot)
    assert 1 == table.try_find((), by_id)


def test_a_slot_in_use_is_no_room_until_it_is_idle() -> None:
    """With every slot in use there is none."""
    table = SlotTable(2)
    busy = [tenant(table, number, number, running=1) for number in range(2)]
    assert table.try_find((), equal) is None
    assert table.try_find((), equal) is None  # known by now
    busy[1].running = 0
    table.add_busy(-1)
    assert 1 == table.try_find((), equal)


def test_promised_slots_are_avoided() -> None:
    """What is promised to another is not found, even if it is the only one."""
    table = SlotTable(2)
    assert 1 == table.try_find((0,), equal)
    assert table.try_find((0, 1), equal) is None


def test_a_slot_comes_free_when_the_last_request_on_it_ends() -> None:
    """Those of idle adapters, and empty ones, are free."""
    table = SlotTable(4)
    left: dict[AdapterId | None, int] = {AdapterId(1): 9, AdapterId(2): 2}
    for number in (1, 2):
        tenant(table, number, number, running=1)
    tenant(table, 3, 3)
    assert [0, 9, 2, 0] == table.by_slot(left)


def test_a_removed_adapter_leaves_its_slot() -> None:
    """Removing one that is in no slot changes nothing."""
    table = SlotTable(1)
    entry = tenant(table, 1, 0)
    assert entry is table.at(0)
    table.remove(entry)
    table.remove(entry)
    assert table.at(0) is None is entry.slot


@pytest.mark.parametrize("kind", ["table", "pages"])
def test_with_or_without_slots_an_empty_engine_answers_alike(kind: str) -> None:
    """There is a place for anybody, nobody is in it, and nothing is about to come free."""
    limits = EngineLimits(
        seats=1, slots=1, kv_tokens=160, kv_bytes_per_token=1, is_paged=kind == "pages"
    )
    slots = Scheduler(PolicySettings(), limits)._residency.slots
    assert 0 == slots.try_find([], equal)
    assert ([], None) == (slots.in_use(), slots.at(0))
    assert not any(slots.by_slot({}))
