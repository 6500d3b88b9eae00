"""Do some adapters wait longer than others?"""

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

from chameleon_lora.metrics.groups import BASE_MODEL, by_adapter
from chameleon_lora.metrics.record import RequestRecord

LEAST_REQUESTS = 5
"""Adapters with fewer completed requests have no percentiles worth comparing."""


@dataclass(frozen=True, slots=True)
class Fairness:
    """How evenly a run's waiting falls on adapters; of those with `LEAST_REQUESTS` or more.

    Attributes:
        adapters: how many those are.
        jain_ttft: Jain's index of their mean times to first token, in (0, 1]; 1 is all alike.
        worst: the adapter with the highest P99 time to first token.
        worst_over_median: its P99 over the median adapter's P99.
    """

    adapters: int
    jain_ttft: float
    worst: str
    worst_over_median: float


def fairness(records: Sequence[RequestRecord]) -> Fairness | None:
    """None if fewer than two adapters have so many completed requests."""
    ttfts = [
        (group.key, group.ttft)
        for group in by_adapter(records)
        if group.key != BASE_MODEL and group.completed >= LEAST_REQUESTS and group.ttft
    ]
    if len(ttfts) < 2:
        return None
    worst, worst_s = max(
        ((name, ttft.p99_s) for name, ttft in ttfts), key=lambda pair: (pair[1], pair[0])
    )
    median_s = statistics.median(ttft.p99_s for _, ttft in ttfts)
    return Fairness(
        adapters=len(ttfts),
        jain_ttft=jain([ttft.mean_s for _, ttft in ttfts]),
        worst=worst,
        worst_over_median=worst_s / median_s if median_s else 1.0,
    )


def jain(values: Sequence[float]) -> float:
    """(sum x)^2 / (n * sum x^2): 1 if all are equal, 1/n if one has all.

    Jain, Chiu and Hawe, DEC-TR-301 (1984). At least one value, none negative; 1 if all are 0.
    """
    squares = sum(value * value for value in values)
    return sum(values) ** 2 / (len(values) * squares) if squares else 1.0
