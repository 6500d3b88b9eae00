"""Running quantiles: of the last values, and blended over adapters."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.policy.estimate.quantiles import RecentValues, RunningQuantile
from chameleon_lora.policy.request import AdapterId

SHARES = st.sampled_from((0.1, 0.5, 0.9))


def plain_quantile(values: list[float], share: float) -> float:
    """The definition, by weights of the two neighbours."""
    ordered = sorted(values)
    place = share * (len(ordered) + 1)
    if place <= 1:
        return ordered[0]
    if place >= len(ordered):
        return ordered[-1]
    part = place % 1
    return ordered[int(place) - 1] * (1 - part) + ordered[int(place)] * part


@given(values=st.lists(st.integers(-50, 50), min_size=1, max_size=40), share=SHARES)
def test_a_recent_quantile_equals_the_definition(values: list[int], share: float) -> None:
    """Over the last 7 values, whatever came before."""
    recent = RecentValues(7, share)
    for value in values:
        recent.add(value)
    window = [float(value) for value in values[-7:]]
    assert len(window) == len(recent)
    assert plain_quantile(window, share) == pytest.approx(recent.quantile)


def test_half_is_the_median() -> None:
    """Between the middle two of an even number."""
    recent = RecentValues(4, 0.5)
    for value in (9, 1, 4, 2):
        recent.add(value)
    assert 3.0 == recent.quantile


@pytest.mark.parametrize("share", [0.5, 0.9])
def test_a_new_value_is_below_with_the_quantiles_share(share: float) -> None:
    """Of 4,000 draws from one source the share itself, to 2 %, fell below what was known before."""
    rng = random.Random(3)
    running = RunningQuantile(share, 64, 0.0, 4.0)
    below = 0
    for _ in range(4000):
        value = rng.lognormvariate(4.0, 1.0)
        below += value <= running.expected(None)
        running.observe(None, value)
    assert share == pytest.approx(below / 4000, abs=0.02)


def test_an_adapter_starts_from_all_and_leaves_them_for_its_own() -> None:
    """Unknown: what all show. After a full window of its own: nearly that."""
    running = RunningQuantile(0.5, 64, 0.0, 4.0)
    for _ in range(64):
        running.observe(AdapterId(1), 10.0)
    of_all = running.expected(AdapterId(2))
    assert 10.0 * 64 / 68 == pytest.approx(of_all)
    running.observe(AdapterId(2), 100.0)
    assert of_all < running.expected(AdapterId(2)) < 40.0
    for _ in range(64):
        running.observe(AdapterId(2), 100.0)
    assert 100.0 == pytest.approx(running.expected(AdapterId(2)), rel=0.05)


def test_a_forgotten_adapter_is_an_unknown_one() -> None:
    """And forgetting one that was never seen changes nothing."""
    running = RunningQuantile(0.9, 8, 1.0, 4.0)
    for value in range(20):
        running.observe(AdapterId(1), value)
    unknown = running.expected(AdapterId(2))
    running.forget(AdapterId(1))
    running.forget(AdapterId(3))
    assert unknown == running.expected(AdapterId(1))
