"""One run in numbers."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from chameleon_lora.metrics.record import RequestRecord, token_gaps_s, ttfts_s


@dataclass(frozen=True, slots=True)
class Spread:
    """Mean, median and tail of a set of times, in seconds."""

    count: int
    mean_s: float
    p50_s: float
    p90_s: float
    p99_s: float
    max_s: float


@dataclass(frozen=True, slots=True)
class RunSummary:
    """The figures of one run.

    Attributes:
        duration_s: from the run's begin to the end of its last request.
        ttft: of the completed requests; None if there are none.
        token_gap: between neighbouring tokens of a request, all requests together; None if no
            request had two tokens.
        output_tokens_per_s: output tokens of completed requests per second of the run.
        slo_s: the time to first token that counts as in time, None if no limit was set.
        slo_share: requests in time over all requests, failed ones counted as late.
        max_lateness_s: the worst delay of the client itself.
    """

    requests: int
    completed: int
    failed: int
    duration_s: float
    ttft: Spread | None
    latency: Spread | None
    token_gap: Spread | None
    requests_per_s: float
    output_tokens_per_s: float
    slo_s: float | None
    slo_share: float | None
    max_lateness_s: float


def percentile(values: Sequence[float], percent: float) -> float:
    """The value below which `percent` % of `values` lie, linear between neighbours.

    `values` holds at least one number, in any order; 0 gives the least and 100 the greatest.
    The same rule as numpy's default, so figures compare with other tools'.
    """
    ordered = sorted(values)
    position = (len(ordered) - 1) * percent / 100.0
    below = math.floor(position)
    above = min(below + 1, len(ordered) - 1)
    return ordered[below] + (ordered[above] - ordered[below]) * (position - below)


def spread(values: Sequence[float]) -> Spread | None:
    """Mean, median and tail of `values`; None if there are none."""
    if not values:
        return None
    return Spread(
        count=len(values),
        mean_s=sum(values) / len(values),
        p50_s=percentile(values, 50.0),
        p90_s=percentile(values, 90.0),
        p99_s=percentile(values, 99.0),
        max_s=max(values),
    )


def share_in_time(records: Sequence[RequestRecord], slo_s: float | None) -> float | None:
    """Requests whose first token came within `slo_s` over all, one at least; None without a limit."""
    if slo_s is None:
        return None
    return sum(ttft_s <= slo_s for ttft_s in ttfts_s(records)) / len(records)


def summarise(records: Sequence[RequestRecord], slo_s: float | None = None) -> RunSummary:
    """The figures of a run of at least one request; `slo_s` is the limit on time to first token."""
    completed = [record for record in records if record.is_completed]
    duration_s = max(record.end_s for record in records)
    return RunSummary(
        requests=len(records),
        completed=len(completed),
        failed=len(records) - len(completed),
        duration_s=duration_s,
        ttft=spread(ttfts_s(records)),
        latency=spread([record.latency_s for record in completed]),
        token_gap=spread(token_gaps_s(records)),
        requests_per_s=len(completed) / duration_s,
        output_tokens_per_s=sum(record.output_tokens for record in completed) / duration_s,
        slo_s=slo_s,
        slo_share=share_in_time(records, slo_s),
        max_lateness_s=max(record.lateness_s for record in records),
    )


def ratio(base: float | None, other: float | None) -> float | None:
    """`other` over `base`; None where either is missing or `base` is 0."""
    return None if not base or other is None else other / base
