"""Poisson arrivals."""

import random
from itertools import pairwise

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.arrivals import poisson_arrivals


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
