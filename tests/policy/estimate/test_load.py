"""The head start of small requests."""

import math

from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.policy.estimate.load import LoadEstimator


def settled(wait_s: float, tokens: int, gap_s: float) -> LoadEstimator:
    """After thousands of requests of this wait, size and time between two ends."""
    pace = LoadEstimator()
    for number in range(2000):
        pace.admitted(wait_s)
        pace.ended(tokens, number * gap_s)
    return pace


def test_no_head_start_before_anything_is_known() -> None:
    """Neither at the start, nor while nothing waits, nor before two requests have ended."""
    assert 0.0 == LoadEstimator().boost_s(1)
    assert 0.0 == settled(0.0, 100, 0.1).boost_s(1)
    pace = LoadEstimator()
    pace.admitted(1e3)
    pace.ended(100, 1.0)
    assert 0.0 == pace.boost_s(1)


def test_it_is_the_formula_of_the_boost_policy() -> None:
    """100 tokens in 0.1 s and a mean wait of 2 s: b(s) = 2 ln(1 / (1 - exp(-s / 2)))."""
    pace = settled(2.0, 100, 0.1)
    expected = 2.0 * math.log(1 / (1 - math.exp(-0.5 / 2.0)))
    assert math.isclose(expected, pace.boost_s(500), rel_tol=1e-3)


@given(
    waits_s=st.lists(st.floats(0, 1e5), min_size=1, max_size=8),
    ends=st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1e4)), min_size=2, max_size=8),
    sizes=st.lists(st.integers(1, 10**7), min_size=2, max_size=8),
)
def test_never_negative_and_never_more_for_a_larger_request(
    waits_s: list[float], ends: list[tuple[int, float]], sizes: list[int]
) -> None:
    """Whatever was seen, the head start is finite, at least 0, and falls with the size."""
    pace = LoadEstimator()
    now_s = 0.0
    for wait_s in waits_s:
        pace.admitted(wait_s)
    for tokens, gap_s in ends:
        now_s += gap_s
        pace.ended(tokens, now_s)
    boosts = [pace.boost_s(tokens) for tokens in sorted(sizes)]
    assert all(0.0 <= boost < math.inf for boost in boosts)
    assert sorted(boosts, reverse=True) == boosts
