"""When do requests arrive?"""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chameleon_lora.errors import ConfigError


@dataclass(frozen=True, slots=True)
class Poisson:
    """Requests arrive independently of each other: exponential gaps."""


@dataclass(frozen=True, slots=True)
class Gamma:
    """Requests arrive in bursts, or more evenly than at random: gamma-distributed gaps.

    Attributes:
        cv: coefficient of variation of the gaps; 1 is Poisson, above it are bursts. S-LoRA's
            evaluation varies it from 1 to 8.
    """

    cv: float

    def __post_init__(self) -> None:
        if not 0.0 < self.cv < math.inf:
            raise ConfigError(
                f"gaps with a coefficient of variation of {self.cv} are not gamma-distributed: "
                "give one above 0; 1 is Poisson"
            )


@dataclass(frozen=True, slots=True)
class Recorded:
    """Requests arrive as in the trace, its time stretched to the wanted rate."""


Arrivals = Poisson | Gamma | Recorded


def poisson_arrivals(rate_per_s: float, duration_s: float, rng: random.Random) -> tuple[float, ...]:
    """Arrival times in [0, duration_s), ascending, with exponential gaps of mean 1 / rate_per_s.

    The same `rng` state at twice the rate gives the same gaps, halved.

    Raises:
        ConfigError: the rate or the duration is not above 0, or not finite.
    """
    _check(rate_per_s, duration_s, "a Poisson stream")
    return _renewals(lambda: rng.expovariate(1.0) / rate_per_s, duration_s)


def gamma_arrivals(
    rate_per_s: float, duration_s: float, cv: float, rng: random.Random
) -> tuple[float, ...]:
    """Arrival times in [0, duration_s), ascending, with gamma gaps of mean 1 / rate_per_s.

    Shape 1 / cv^2, as in S-LoRA's workload. The stream begins with a gap, in expectation with
    (cv^2 - 1) / 2 requests more than rate_per_s * duration_s. The same `rng` state at twice the
    rate gives the same gaps, halved.

    Raises:
        ConfigError: the rate, the duration or `cv` is not above 0, or not finite.
    """
    _check(rate_per_s, duration_s, "a gamma stream")
    shape = 1.0 / Gamma(cv).cv ** 2
    return _renewals(lambda: rng.gammavariate(shape, 1.0 / shape) / rate_per_s, duration_s)


def recorded_arrivals(
    times_s: Sequence[float], rate_per_s: float, duration_s: float
) -> tuple[float, ...]:
    """The recorded times before `duration_s`, from 0, stretched to a mean of `rate_per_s`.

    A record that ends before the duration begins anew, one mean gap after its last request. The
    rate is that of the whole record: a part of it may be slower or faster.

    Raises:
        ConfigError: no time passes in the record, or the rate or duration is not above 0.
    """
    _check(rate_per_s, duration_s, "a recorded stream")
    span_s = times_s[-1] - times_s[0] if times_s else 0.0
    if span_s <= 0.0:
        raise ConfigError(
            f"{len(times_s)} recorded arrivals within {span_s} s cannot be stretched to a rate: "
            "give at least two at different times, or draw the arrivals"
        )
    stretch = (len(times_s) - 1) / rate_per_s / span_s
    period_s = len(times_s) / rate_per_s
    stretched_s = [(time_s - times_s[0]) * stretch for time_s in times_s]
    rounds = math.ceil(duration_s / period_s)
    return tuple(
        at_s
        for begin_s in (period_s * number for number in range(rounds))
        for time_s in stretched_s
        if (at_s := begin_s + time_s) < duration_s
    )


def _renewals(next_gap_s: Callable[[], float], duration_s: float) -> tuple[float, ...]:
    times: list[float] = []
    now_s = next_gap_s()
    while now_s < duration_s:
        times.append(now_s)
        now_s += next_gap_s()
    return tuple(times)


def _check(rate_per_s: float, duration_s: float, stream: str) -> None:
    if not (0.0 < rate_per_s < math.inf and 0.0 < duration_s < math.inf):
        raise ConfigError(
            f"{stream} of {rate_per_s} requests/s over {duration_s} s is empty or endless: "
            "give a rate and a duration above 0"
        )
