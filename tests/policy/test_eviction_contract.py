"""What every keep rule must obey, whatever it prefers."""

import math
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.memory.eviction import Evictor, KeepRule, KeepWeights
from tests.policy.engine_model import adapter

WEIGHTS = st.builds(
    KeepWeights,
    frequency=st.floats(0.01, 10),
    recency=st.floats(0.01, 10),
    size=st.floats(0.01, 10),
)


def entry(
    number: int, nbytes: int, last_use_s: float, use_count: int, inflation: float, next_use_s: float
) -> Entry:
    return Entry(
        adapter(number, nbytes),
        last_use_s=last_use_s,
        inflation=inflation,
        next_use_s=next_use_s,
        uses_s=[last_use_s] * use_count,
    )


ENTRIES = st.lists(
    st.builds(
        entry,
        number=st.integers(0, 1000),
        nbytes=st.integers(1, 2**32),
        last_use_s=st.floats(0, 1e6),
        use_count=st.integers(0, 1000),
        inflation=st.floats(0, 1e6),
        next_use_s=st.floats(0, 1e6),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda entry: entry.adapter.id,
)

pytestmark = pytest.mark.parametrize("rule", KeepRule)


def make(rule: KeepRule, weights: KeepWeights) -> Evictor:
    """The rule where every use counts."""
    return Evictor(rule, weights, math.inf)


def victim(entries: list[Entry], rule: KeepRule, weights: KeepWeights) -> Entry:
    """Who goes when one has to go."""
    return make(rule, weights).cheapest(entries, 1, lambda _: 1, 0.0)[0]


@given(entries=ENTRIES, weights=WEIGHTS)
def test_victim_is_an_entry_of_least_value(
    rule: KeepRule, entries: list[Entry], weights: KeepWeights
) -> None:
    """The victim is among the entries, has the least value, and of those the least id."""
    values = make(rule, weights).keep_score(entries, 0.0)
    assert len(entries) == len(values)
    least = [e for e, value in zip(entries, values, strict=True) if value == min(values)]
    expected = min(least, key=lambda entry: entry.adapter.id)
    assert expected == victim(entries, rule, weights)


@given(entries=ENTRIES, weights=WEIGHTS, seed=st.integers(0, 99))
def test_order_and_repetition_are_irrelevant(
    rule: KeepRule, entries: list[Entry], weights: KeepWeights, seed: int
) -> None:
    """The same entries in any order, asked at any time, have the same values and victim."""
    shuffled = random.Random(seed).sample(entries, len(entries))
    evictor = make(rule, weights)
    values = dict(zip(shuffled, evictor.keep_score(shuffled, 0.0), strict=True))
    assert [values[entry] for entry in entries] == evictor.keep_score(entries, 0.0)
    assert victim(entries, rule, weights) == victim(shuffled, rule, weights)


@given(entries=ENTRIES, weights=WEIGHTS, used=st.integers(1, 9), later_s=st.integers(1, 99))
def test_entry_that_is_colder_in_every_way_goes_first(
    rule: KeepRule, entries: list[Entry], weights: KeepWeights, used: int, later_s: int
) -> None:
    """Of two of one size, the one used less, longer ago and later next has the lower value."""
    cold = entries[0]
    warm = entry(
        2000,
        cold.adapter.nbytes,
        cold.last_use_s + later_s,
        len(cold.uses_s) + used,
        cold.inflation,
        cold.next_use_s - later_s,
    )
    values = make(rule, weights).keep_score([*entries, warm], 0.0)
    assert values[0] < values[-1]
    assert cold == victim([warm, cold], rule, weights)


@given(weights=WEIGHTS, uses=st.integers(0, 9))
def test_equal_entries_go_by_id(rule: KeepRule, weights: KeepWeights, uses: int) -> None:
    """Of entries alike in everything, the one with the lowest id goes."""
    twins = [entry(number, 7, 1.0, uses, 2.0, 3.0) for number in (7, 3, 5)]
    assert twins[1] == victim(twins, rule, weights)


def test_only_entry_goes(rule: KeepRule) -> None:
    """One entry is the victim, also when it was never used."""
    only = Entry(adapter(1, 1))
    assert only == victim([only], rule, KeepWeights())


def test_nothing_has_no_values(rule: KeepRule) -> None:
    """No entries have no values."""
    assert [] == make(rule, KeepWeights()).keep_score([], 0.0)
