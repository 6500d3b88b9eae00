"""Lengths: drawn, scaled, fitted to memory."""

import random

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.lengths import (
    AZURE_CONVERSATION,
    LengthScale,
    draw_lengths,
    draw_places,
    factor_for_memory,
    representative_pairs,
)


def test_a_factor_scales_both_lengths() -> None:
    """A tenth of (1000, 250) is (100, 25)."""
    assert LengthScale(0.1).scaled((1000, 250)) == (100, 25)


def test_limits_hold_after_scaling() -> None:
    """A tenth of (1000, 20) within 8..64 and 4..16 is (64, 4)."""
    assert LengthScale(0.1, (8, 64), (4, 16)).scaled((1000, 20)) == (64, 4)


def test_each_round_of_draws_holds_every_pair_once() -> None:
    """Two rounds of 64 and a rest: each round is the whole table, in another order."""
    draws = draw_lengths(AZURE_CONVERSATION, LengthScale(), 130, random.Random(1))
    assert len(draws) == 130
    first, second = draws[:64], draws[64:128]
    assert sorted(AZURE_CONVERSATION) == sorted(first) == sorted(second)
    assert first != second


def test_a_factor_of_zero_is_refused() -> None:
    """It would leave no tokens."""
    with pytest.raises(ConfigError, match=r"factor of 0\.0"):
        LengthScale(0.0)


@pytest.mark.parametrize("limits", [(0, 4), (5, 4)])
def test_limits_without_a_length_are_refused(limits: tuple[int, int]) -> None:
    """Less than one token, or more at least than at most, is an error."""
    with pytest.raises(ConfigError, match=rf"{limits[0]}\.\.{limits[1]}"):
        LengthScale(1.0, limits)


def test_groups_of_one_stand_for_themselves() -> None:
    """Four requests in 2 x 2 groups: halves by input, each ordered by output."""
    rows = [(40, 3), (2, 10), (30, 4), (1, 20)]
    assert ((2, 10), (1, 20), (40, 3), (30, 4)) == representative_pairs(rows, 2)


def test_a_pair_is_its_groups_mean() -> None:
    """One group of three requests gives the mean of both lengths."""
    assert ((3, 20),) == representative_pairs([(1, 30), (2, 10), (6, 20)], 1)


def test_places_are_drawn_once_before_any_comes_again() -> None:
    """Seven draws of three places: two whole rounds and one more."""
    drawn = draw_places(3, 7, random.Random(2))
    assert [0, 1, 2] == sorted(drawn[:3]) == sorted(drawn[3:6])
    assert 7 == len(drawn)


def test_a_factor_fits_lengths_to_memory() -> None:
    """At 2 requests/s and 0.1 s a token, (100, 20) holds 110 tokens for 2 s: 440 of them in all.

    Memory for 110 takes half of both lengths: 55 tokens for 1 s, twice a second.
    """
    assert pytest.approx(1.0) == factor_for_memory([(100, 20)], 440.0, 2.0, 0.1)
    assert pytest.approx(0.5) == factor_for_memory([(100, 20)], 110.0, 2.0, 0.1)


@pytest.mark.parametrize(
    ("pairs", "kv_tokens", "rate"), [([], 9.0, 1.0), ([(9, 0)], 9.0, 1.0), ([(9, 9)], 0.0, 1.0)]
)
def test_lengths_that_hold_nothing_have_no_factor(
    pairs: list[tuple[int, int]], kv_tokens: float, rate: float
) -> None:
    """No lengths, no output, or no memory."""
    with pytest.raises(ConfigError, match=f"no factor makes {len(pairs)} lengths"):
        factor_for_memory(pairs, kv_tokens, rate, 0.1)
