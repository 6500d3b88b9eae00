"""Power-law popularity."""

import random
from collections import Counter

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.popularity import draw_ranks, power_law_shares


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
