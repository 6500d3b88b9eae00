"""Whom the keep rule lets go, for sizes of any unit."""

import pytest

from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.memory.eviction import Evictor, KeepRule, KeepWeights
from tests.policy.engine_model import adapter


def used(*times_s: float) -> list[Entry]:
    """Adapters last used at these times, with a block each."""
    entries = [Entry(adapter(number), blocks=1) for number in range(len(times_s))]
    for entry, time_s in zip(entries, times_s, strict=True):
        entry.last_use_s = time_s
        entry.uses_s.append(time_s)
    return entries


def cheapest(evictor: Evictor, entries: list[Entry], lacking: int) -> list[int]:
    """Who goes for so many blocks."""
    chosen = evictor.cheapest(entries, lacking, lambda entry: entry.blocks, 10.0)
    return [entry.adapter.id for entry in chosen]


def make(rule: KeepRule = KeepRule.LRU, window_s: float = 300.0) -> Evictor:
    return Evictor(rule, KeepWeights(), window_s)


def test_the_least_worth_go_until_it_is_enough() -> None:
    """Longest unused first, no more than needed."""
    entries = used(3.0, 1.0, 2.0, 4.0)
    entries[1].blocks = 2
    assert [1] == cheapest(make(), entries, 2)
    assert [1, 2] == cheapest(make(), entries, 3)


@pytest.mark.parametrize(("count", "lacking"), [(0, 5), (3, 0), (3, -1)])
def test_nobody_goes_without_need(count: int, lacking: int) -> None:
    """Nothing lacks, or there is nobody."""
    assert [] == cheapest(make(), used(*map(float, range(count))), lacking)


def test_all_go_if_they_are_not_enough() -> None:
    """The caller decides what that means."""
    assert [0, 1] == cheapest(make(), used(1.0, 2.0), 9)


def test_equals_go_by_id() -> None:
    """So the same facts give the same plans."""
    entries = used(1.0, 1.0, 1.0)
    assert [0, 1] == cheapest(make(), entries[::-1], 2)


def test_uses_before_the_window_do_not_count() -> None:
    """Under LFU an adapter used often, but long ago, is worth less than one used lately."""
    entries = used(1.0, 9.0)
    entries[0].uses_s.extend((1.0, 1.0, 1.0))
    evictor = make(KeepRule.LFU, window_s=5.0)
    values = evictor.keep_score(entries, 10.0)
    assert values[0] < values[1]


def test_asking_for_a_score_changes_nothing() -> None:
    """Uses that left the window are forgotten at the next use, not by a question."""
    often, lately = entries = used(1.0, 9.0)
    make(KeepRule.LFU, window_s=5.0).keep_score(entries, 10.0)
    assert ([1.0], [9.0]) == (list(often.uses_s), list(lately.uses_s))
    often.used(10.0, 5.0)
    assert ([10.0], 10.0) == (list(often.uses_s), often.last_use_s)


def test_the_clock_never_goes_back() -> None:
    """It stands at the highest value that went."""
    evictor = make(KeepRule.GDSF)
    rich, poor = entries = used(1.0, 1.0)
    rich.inflation = 50.0
    assert [1, 0] == cheapest(evictor, entries, 2)
    assert 50.0 < evictor.inflation
    before = evictor.inflation
    assert [1] == cheapest(evictor, [poor], 1)
    assert before == evictor.inflation
