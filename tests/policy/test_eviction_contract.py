"""What every keep rule must obey, whatever it prefers."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.policy.memory.eviction import (
    Candidate,
    KeepRule,
    KeepWeights,
    keep_values,
    victim,
)
from chameleon_lora.policy.request import AdapterId

WEIGHTS = st.builds(
    KeepWeights,
    frequency=st.floats(0.01, 10),
    recency=st.floats(0.01, 10),
    size=st.floats(0.01, 10),
)
CANDIDATES = st.lists(
    st.builds(
        Candidate,
        adapter_id=st.integers(0, 1000).map(AdapterId),
        nbytes=st.integers(1, 2**32),
        last_use_s=st.floats(0, 1e6),
        use_count=st.integers(0, 10_000),
        inflation=st.floats(0, 1e6),
        next_use_s=st.floats(0, 1e6),
    ),
    min_size=1,
    max_size=12,
    unique_by=lambda candidate: candidate.adapter_id,
)

pytestmark = pytest.mark.parametrize("rule", KeepRule)


@given(candidates=CANDIDATES, weights=WEIGHTS)
def test_victim_is_a_candidate_of_least_value(
    rule: KeepRule, candidates: list[Candidate], weights: KeepWeights
) -> None:
    """The victim is among the candidates, has the least value, and of those the least id."""
    values = keep_values(candidates, rule, weights)
    assert len(candidates) == len(values)
    least = [c for c, v in zip(candidates, values, strict=True) if v == min(values)]
    expected = min(least, key=lambda candidate: candidate.adapter_id)
    assert expected == victim(candidates, rule, weights)


@given(candidates=CANDIDATES, weights=WEIGHTS, seed=st.integers(0, 99))
def test_order_and_repetition_are_irrelevant(
    rule: KeepRule, candidates: list[Candidate], weights: KeepWeights, seed: int
) -> None:
    """The same candidates in any order, asked at any time, have the same values and victim."""
    shuffled = random.Random(seed).sample(candidates, len(candidates))
    by_id = dict(zip(shuffled, keep_values(shuffled, rule, weights), strict=True))
    assert keep_values(candidates, rule, weights) == [by_id[c] for c in candidates]
    assert victim(candidates, rule, weights) == victim(shuffled, rule, weights)


@given(candidates=CANDIDATES, weights=WEIGHTS, used=st.integers(1, 9), later_s=st.integers(1, 99))
def test_candidate_that_is_colder_in_every_way_goes_first(
    rule: KeepRule, candidates: list[Candidate], weights: KeepWeights, used: int, later_s: int
) -> None:
    """Of two of one size, the one used less, longer ago and later next has the lower value."""
    cold = candidates[0]
    warm = cold._replace(
        adapter_id=AdapterId(2000),
        last_use_s=cold.last_use_s + later_s,
        use_count=cold.use_count + used,
        next_use_s=cold.next_use_s - later_s,
    )
    values = keep_values([*candidates, warm], rule, weights)
    assert values[0] < values[-1]
    assert victim([warm, cold], rule, weights) == cold


@given(candidate=CANDIDATES.map(lambda candidates: candidates[0]), weights=WEIGHTS)
def test_equal_candidates_go_by_id(
    rule: KeepRule, candidate: Candidate, weights: KeepWeights
) -> None:
    """Of candidates alike in everything, the one with the lowest id goes."""
    twins = [candidate._replace(adapter_id=AdapterId(number)) for number in (7, 3, 5)]
    assert victim(twins, rule, weights) == twins[1]


def test_only_candidate_goes(rule: KeepRule) -> None:
    """One candidate is the victim, also when it was never used."""
    only = Candidate(AdapterId(1), nbytes=1, last_use_s=0.0, use_count=0)
    assert victim([only], rule, KeepWeights()) == only


def test_nothing_has_no_values(rule: KeepRule) -> None:
    """No candidates have no values; a victim of none is an error."""
    assert keep_values([], rule, KeepWeights()) == []
    with pytest.raises(ValueError, match="empty"):
        victim([], rule, KeepWeights())
