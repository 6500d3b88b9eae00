"""From figures to words and verdicts."""

import pytest

from chameleon_lora.reproduce.finding import Verdict
from chameleon_lora.reproduce.judging import change, fall_verdict, gain_verdict, signed_percents


def test_a_change_is_told_relative_to_the_base() -> None:
    """From 4 s to 1 s is three quarters less; against nothing there is no change."""
    assert -0.75 == change(4.0, 1.0)
    assert 0.0 == change(0.0, 1.0)


def test_changes_are_written_as_the_paper_writes_them() -> None:
    """Signs, one digit, slashes between."""
    assert "-14.7 / +3.0 %" == signed_percents((-0.147, 0.03))


@pytest.mark.parametrize(
    ("found", "verdict"),
    [
        ((-0.3, -0.9), Verdict.HOLDS),
        ((-0.2, -0.785), Verdict.HOLDS),  # within what chance accounts for
        ((-0.3, -0.5), Verdict.PARTLY),
        ((-0.3, 0.0), Verdict.FAILS),
    ],
)
def test_a_fall_holds_if_all_are_as_deep(found: tuple[float, ...], verdict: Verdict) -> None:
    """Claimed are -20 and -80 %; one that does not fall at all makes the claim fail."""
    assert verdict is fall_verdict((-0.2, -0.8), found)


@pytest.mark.parametrize(
    ("found", "verdict"),
    [((1.5,), Verdict.HOLDS), ((1.2,), Verdict.PARTLY), ((1.0,), Verdict.FAILS)],
)
def test_a_gain_holds_if_it_is_as_large(found: tuple[float, ...], verdict: Verdict) -> None:
    """Claimed is 1.5x."""
    assert verdict is gain_verdict((1.5,), found)
