"""Popularity: power laws, rank mixes, drift."""

import random
from collections import Counter

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.named_adapters import named_adapters
from chameleon_lora.workload.popularity import (
    draw_ranks,
    drifted,
    power_law_shares,
    request_shares,
)

MIX = named_adapters(6, (8, 16, 32))


def test_zipf_shares_of_three() -> None:
    """1, 1/2, 1/3 over their sum 11/6."""
    assert power_law_shares(3, 1.0) == pytest.approx((6 / 11, 3 / 11, 2 / 11))


def test_exponent_zero_is_uniform() -> None:
    """rank^0 is 1 for each."""
    assert power_law_shares(4, 0.0) == (0.25, 0.25, 0.25, 0.25)


def test_law_is_a_power_and_not_geometric() -> None:
    """Doubling the rank divides the share by 2^alpha, at every rank."""
    shares = power_law_shares(64, 1.5)
    ratios = [shares[rank - 1] / shares[2 * rank - 1] for rank in (1, 4, 16, 32)]
    assert ratios == pytest.approx([2**1.5] * 4)


def test_draws_follow_the_shares() -> None:
    """Of 60,000 draws from 3, 2, 1 sixths, 30, 20, 10 thousand fall on each, +- 1 %."""
    counts = Counter(draw_ranks((3 / 6, 2 / 6, 1 / 6), 60_000, random.Random(1)))
    assert [counts[rank] for rank in range(3)] == pytest.approx([30_000, 20_000, 10_000], abs=600)


def test_draws_never_leave_the_shares() -> None:
    """Shares that sum to less than 1 by rounding still give only their own indices."""
    assert set(draw_ranks((0.2, 0.2), 200, random.Random(2))) == {0, 1}


@pytest.mark.parametrize(("count", "alpha"), [(0, 1.0), (3, -0.5)])
def test_impossible_laws_are_refused(count: int, alpha: float) -> None:
    """No adapters, or a law by which rarer is more popular, is an error."""
    with pytest.raises(ConfigError, match=f"over {count} adapters with exponent {alpha}"):
        power_law_shares(count, alpha)


def test_without_a_rank_exponent_one_law_runs_over_all() -> None:
    """Ranks stand interleaved in it."""
    assert power_law_shares(6, 1.0) == request_shares(MIX, 1.0)


def test_ranks_may_be_equally_popular() -> None:
    """A third for each LoRA rank; within it two adapters at 2 to 1."""
    expected = [2 / 9] * 3 + [1 / 9] * 3
    assert pytest.approx(expected) == request_shares(MIX, 1.0, rank_alpha=0.0)


def test_ranks_may_follow_a_law_of_their_own() -> None:
    """6, 3, 2 elevenths for the LoRA ranks 8, 16, 32; within each both adapters alike."""
    expected = [3 / 11, 1.5 / 11, 1 / 11] * 2
    assert pytest.approx(expected) == request_shares(MIX, 0.0, rank_alpha=1.0)


def test_names_without_ranks_cannot_share_by_rank() -> None:
    """The message names the type that carries a rank."""
    with pytest.raises(ConfigError, match=r"'a' has no rank to share by; .* NamedAdapter"):
        request_shares(["a", "b"], 1.0, rank_alpha=0.0)


def test_popularity_moves_one_place_each_shift() -> None:
    """After each 10 s the next adapter is first, and the first has become last."""
    times_s = [0.0, 9.9, 10.0, 25.0, 30.0]
    places = drifted([0] * 5, times_s, ["a", "b", "c"], 10.0, by_rank=False)
    assert (0, 0, 1, 2, 0) == places
    assert (0,) == drifted([2], [10.0], ["a", "b", "c"], 10.0, by_rank=False)


def test_popularity_moves_within_a_rank() -> None:
    """Ranks 8, 16, 32 stand at places 0 and 3, 1 and 4, 2 and 5."""
    assert (3, 4, 2) == drifted([0, 1, 5], [1.0] * 3, MIX, 1.0, by_rank=True)


@pytest.mark.parametrize("shift_s", [0.0, -1.0, float("nan")])
def test_a_shift_without_time_is_refused(shift_s: float) -> None:
    """The message gives the least."""
    with pytest.raises(ConfigError, match=f"each {shift_s} s: give 0.001 s or more"):
        drifted([0], [0.0], ["a"], shift_s, by_rank=False)
