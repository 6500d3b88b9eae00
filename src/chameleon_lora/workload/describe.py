"""What is a trace like: its rate, burstiness, lengths, popularity and drift?"""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.trace import TraceRow, recorded_rate_per_s

WINDOW_S = 60.0
_PERCENTS = (50, 90, 95, 99, 100)
_MAX_ALPHA = 50.0


@dataclass(frozen=True, slots=True)
class TokenSpread:
    """Tokens of a request: mean, percentiles (linear between neighbours, as numpy's), maximum."""

    mean: float
    p50: float
    p90: float
    p95: float
    p99: float
    max: float


@dataclass(frozen=True, slots=True)
class Burstiness:
    """How far arrivals are from evenly spread; each is None where there is too little to tell.

    Attributes:
        gap_cv: standard deviation of the gaps between arrivals over their mean; Poisson: 1.
        count_dispersion: variance of the requests in a minute over their mean; Poisson: 1. Of
            whole minutes, two at least.
        peak_to_mean: requests of the busiest of these minutes over their mean.
    """

    gap_cv: float | None
    count_dispersion: float | None
    peak_to_mean: float | None


@dataclass(frozen=True, slots=True)
class AdapterUse:
    """The requests that name an adapter.

    Attributes:
        count: different adapters.
        base_share: share of all requests that name none.
        top_share: share of the most popular adapter among those that name one.
        alpha: exponent of the power law rank^-alpha that fits best, by maximum likelihood, ranks
            by number of requests; None with one adapter.
        drift: share of requests that moved to other adapters from the first half of the requests
            to the second, in [0, 1]; None with one request.
        drift_by_chance: the same between requests at odd and at even positions, which differ by
            chance alone.
    """

    count: int
    base_share: float
    top_share: float
    alpha: float | None
    drift: float | None
    drift_by_chance: float | None


@dataclass(frozen=True, slots=True)
class TraceSummary:
    """A trace in numbers.

    Attributes:
        duration_s: from the first arrival to the last.
        rate_per_s: one over the mean gap; None where no time passes.
        adapters: None if no request names one.
    """

    requests: int
    duration_s: float
    rate_per_s: float | None
    burstiness: Burstiness
    input_tokens: TokenSpread
    output_tokens: TokenSpread
    adapters: AdapterUse | None


def describe(rows: Sequence[TraceRow]) -> TraceSummary:
    """`rows` in numbers; they are in order of arrival.

    Raises:
        ConfigError: there are no rows.
    """
    if not rows:
        raise ConfigError("a trace of 0 requests has no figures; the least is 1")
    times_s = np.array([row.arrival_s for row in rows])
    names = [row.adapter for row in rows if row.adapter is not None]
    return TraceSummary(
        requests=len(rows),
        duration_s=float(times_s[-1] - times_s[0]),
        rate_per_s=recorded_rate_per_s(rows),
        burstiness=_burstiness(times_s - times_s[0]),
        input_tokens=_spread([row.input_tokens for row in rows]),
        output_tokens=_spread([row.output_tokens for row in rows]),
        adapters=_adapter_use(names, len(rows)) if names else None,
    )


def fitted_alpha(counts: Sequence[int]) -> float | None:
    """The exponent of rank^-alpha under which `counts`, most first, are most likely.

    There the law's mean logarithm of the rank is the observed one; found by bisection in 0..50.
    Ranking by the counts themselves makes uniform use look slightly skewed: about 0.2 at 20
    requests an adapter. None with fewer than two ranks.
    """
    if len(counts) < 2:
        return None
    logs = np.log(np.arange(1.0, len(counts) + 1.0))
    observed = float(np.average(logs, weights=np.array(counts)))
    low, high = 0.0, _MAX_ALPHA
    while high - low > 1e-6:
        alpha = (low + high) / 2.0
        expected = float(np.average(logs, weights=np.exp(-alpha * logs)))
        low, high = (alpha, high) if expected > observed else (low, alpha)
    return (low + high) / 2.0


def moved_share(before: Sequence[str], after: Sequence[str]) -> float:
    """Half the sum of differences of the adapters' shares: 0 the same, 1 all others.

    Neither is empty.
    """
    was, now = Counter(before), Counter(after)
    names = dict.fromkeys([*before, *after])
    return sum(abs(was[n] / len(before) - now[n] / len(after)) for n in names) / 2.0


def _burstiness(times_s: NDArray[np.float64]) -> Burstiness:
    gaps_s = np.diff(times_s)
    has_gaps = len(gaps_s) >= 2 and gaps_s.mean() > 0.0
    gap_cv = float(gaps_s.std() / gaps_s.mean()) if has_gaps else None
    minutes = math.floor(times_s[-1] / WINDOW_S)
    if minutes < 2:
        return Burstiness(gap_cv, None, None)
    inside = times_s[times_s < minutes * WINDOW_S]
    # Only minutes with requests are held: a trace of two requests may span a century.
    _, counts = np.unique((inside / WINDOW_S).astype(np.int64), return_counts=True)
    mean = len(inside) / minutes
    variance = (float((counts**2).sum()) - minutes * mean**2) / (minutes - 1)
    return Burstiness(gap_cv, variance / mean, float(counts.max()) / mean)


def _spread(tokens: Sequence[int]) -> TokenSpread:
    values = np.array(tokens)
    return TokenSpread(float(values.mean()), *map(float, np.percentile(values, _PERCENTS)))


def _adapter_use(names: Sequence[str], requests: int) -> AdapterUse:
    counts = sorted(Counter(names).values(), reverse=True)
    half = len(names) // 2
    return AdapterUse(
        count=len(counts),
        base_share=1.0 - len(names) / requests,
        top_share=counts[0] / len(names),
        alpha=fitted_alpha(counts),
        drift=moved_share(names[:half], names[half:]) if half else None,
        drift_by_chance=moved_share(names[0::2], names[1::2]) if half else None,
    )
