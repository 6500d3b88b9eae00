"""The search for the highest load."""

from itertools import pairwise

import pytest

from chameleon_lora.metrics.highest import highest_rate, narrowed


@pytest.mark.parametrize("limit", [0.3, 7.0, 8.0, 9.9, 250.0])
def test_it_is_found_within_the_tolerance(limit: float) -> None:
    """Whether the search starts below or above."""
    found = highest_rate(lambda rate: rate <= limit, 8.0, 0.03)
    assert limit * 0.97 <= found <= limit


def test_what_never_holds_is_nought() -> None:
    """After a finite number of questions."""
    assert 0.0 == highest_rate(lambda _: False, 8.0)


def test_what_always_holds_ends_all_the_same() -> None:
    """At a load that no server sees."""
    assert highest_rate(lambda _: True, 8.0) >= 0.9e6


def test_a_bracket_is_halved_until_it_is_narrow() -> None:
    """From 4..8 around 5 the steps go 6, 5, 5.5, and no step is asked for twice."""
    asked: list[float] = []

    def holds(rate: float) -> bool:
        asked.append(rate)
        return rate <= 5.0

    assert 5.0 == narrowed(holds, 4.0, 8.0, 0.1)
    assert [6.0, 5.0, 5.5] == asked
    assert all(a != b for a, b in pairwise(asked))
