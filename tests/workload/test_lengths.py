"""Lengths: drawn and scaled."""

import random

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.lengths import (
    AZURE_CONVERSATION,
    LengthScale,
    draw_lengths,
    draw_places,
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


def test_places_are_drawn_once_before_any_comes_again() -> None:
    """Seven draws of three places: two whole rounds and one more."""
    drawn = draw_places(3, 7, random.Random(2))
    assert [0, 1, 2] == sorted(drawn[:3]) == sorted(drawn[3:6])
    assert 7 == len(drawn)
