"""Poisson, gamma and recorded arrivals."""

import random
from itertools import pairwise
from statistics import fmean, pstdev

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.arrivals import (
    Gamma,
    gamma_arrivals,
    poisson_arrivals,
    recorded_arrivals,
)


def test_arrivals_ascend_within_the_duration() -> None:
    """Every time lies in [0, duration), and they ascend."""
    times = poisson_arrivals(5.0, 100.0, random.Random(1))
    assert sorted(times) == list(times)
    assert times[0] >= 0.0
    assert times[-1] < 100.0


def test_mean_rate_is_the_asked_one() -> None:
    """10 a second over 1000 s give 10,000 +- 3 standard deviations (100 each)."""
    assert len(poisson_arrivals(10.0, 1000.0, random.Random(2))) == pytest.approx(10_000, abs=300)


def test_gaps_vary_like_an_exponential() -> None:
    """The squared coefficient of variation of exponential gaps is 1."""
    times = poisson_arrivals(1.0, 20_000.0, random.Random(3))
    gaps = [after - before for before, after in pairwise(times)]
    mean = sum(gaps) / len(gaps)
    variance = sum((gap - mean) ** 2 for gap in gaps) / len(gaps)
    assert variance / mean**2 == pytest.approx(1.0, abs=0.05)


def test_double_rate_halves_each_time() -> None:
    """The same generator at twice the rate gives the same pattern, compressed."""
    slow = poisson_arrivals(1.0, 50.0, random.Random(4))
    fast = poisson_arrivals(2.0, 25.0, random.Random(4))
    assert [time_s / 2.0 for time_s in slow] == pytest.approx(fast)


@pytest.mark.parametrize(("rate", "duration"), [(0.0, 1.0), (1.0, 0.0), (-1.0, 1.0)])
def test_an_empty_stream_is_refused(rate: float, duration: float) -> None:
    """A rate or a duration that is not above 0 is an error that names both."""
    with pytest.raises(ConfigError, match=f"{rate} requests/s over {duration} s"):
        poisson_arrivals(rate, duration, random.Random(5))


def cv(times: tuple[float, ...]) -> float:
    """Coefficient of variation of the gaps."""
    gaps = [after - before for before, after in pairwise(times)]
    return pstdev(gaps) / fmean(gaps)


@pytest.mark.parametrize("wanted", [0.25, 1.0, 4.0])
def test_gamma_gaps_have_the_rate_and_variation_asked_for(wanted: float) -> None:
    """40,000 gaps come within 5 % of both, from nearly even to bursty."""
    times = gamma_arrivals(10.0, 4_000.0, wanted, random.Random(6))
    assert pytest.approx(40_000, rel=0.05) == len(times)
    assert pytest.approx(wanted, rel=0.05) == cv(times)
    assert sorted(times) == list(times)


def test_double_rate_halves_each_gamma_gap() -> None:
    """The same generator at twice the rate gives the same pattern, compressed."""
    slow = gamma_arrivals(1.0, 50.0, 3.0, random.Random(4))
    fast = gamma_arrivals(2.0, 25.0, 3.0, random.Random(4))
    assert [time_s / 2.0 for time_s in slow] == pytest.approx(fast)


@pytest.mark.parametrize("wanted", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_variations_are_refused(wanted: float) -> None:
    """It must be above 0 and finite."""
    with pytest.raises(ConfigError, match=f"variation of {wanted}"):
        Gamma(wanted)


def test_a_record_is_stretched_to_the_rate() -> None:
    """Gaps of 1 and 3 s at half a request a second become 0.25 and 0.75 s at two a second."""
    assert (0.0, 0.25, 1.0) == recorded_arrivals([7.0, 8.0, 11.0], 2.0, 1.1)


def test_a_record_that_ends_begins_anew() -> None:
    """Its period is its span and one mean gap, so the rate stays."""
    times = recorded_arrivals([0.0, 1.0, 4.0], 2.0, 300.0)
    assert (0.0, 0.25, 1.0, 1.5, 1.75, 2.5) == times[:6]
    assert 600 == len(times)


@pytest.mark.parametrize("times", [[], [1.0], [1.0, 1.0]])
def test_a_record_of_one_moment_is_refused(times: list[float]) -> None:
    """There is nothing to stretch."""
    with pytest.raises(ConfigError, match=f"{len(times)} recorded arrivals within 0"):
        recorded_arrivals(times, 1.0, 1.0)


@pytest.mark.parametrize("rate", [0.0, float("nan"), float("inf")])
def test_no_stream_has_an_impossible_rate(rate: float) -> None:
    """Gamma and recorded streams refuse what a Poisson stream does."""
    with pytest.raises(ConfigError, match=f"a Poisson stream of {rate} requests/s"):
        poisson_arrivals(rate, 1.0, random.Random(1))
    with pytest.raises(ConfigError, match=f"a gamma stream of {rate} requests/s"):
        gamma_arrivals(rate, 1.0, 2.0, random.Random(1))
    with pytest.raises(ConfigError, match=f"a recorded stream of {rate} requests/s"):
        recorded_arrivals([0.0, 1.0], rate, 1.0)
