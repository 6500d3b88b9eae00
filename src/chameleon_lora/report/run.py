"""A run as the report sees it: what it was, and its figures."""

import math
import statistics
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

from chameleon_lora.bench.run_folder import Purpose
from chameleon_lora.metrics.errors import ErrorCount, by_cause
from chameleon_lora.metrics.lateness import Lateness, lateness
from chameleon_lora.metrics.record import RequestRecord, token_gaps_s, ttfts_s
from chameleon_lora.metrics.sample import Sample
from chameleon_lora.metrics.serving import Window
from chameleon_lora.metrics.summary import Spread, share_in_time, spread


@dataclass(frozen=True, slots=True)
class RunFigures:
    """The figures of the requests that count.

    Attributes:
        ttft: of the completed ones; None if there are none.
        token_gap: between neighbouring tokens of a request, all requests together.
        slo_share: requests in time over all, failed ones counted as late; None without a limit.
        errors: of the failed ones, by cause.
        lateness: of all requests sent, the warm-up's too.
    """

    requests: int
    completed: int
    ttft: Spread | None
    token_gap: Spread | None
    requests_per_s: float
    output_tokens_per_s: float
    slo_share: float | None
    errors: tuple[ErrorCount, ...]
    lateness: Lateness | None


@dataclass(frozen=True, slots=True)
class RecordedRun:
    """One run's folder.

    Attributes:
        folder: as it was named or found.
        load: share of the base's capacity; None where the run has only a rate.
        rate_per_s: None if config.json does not say.
        slo_s: the limit on time to first token, None if none was set.
        ranks: of the adapters whose rank is known.
        active_over_slots: adapters that requests named over slots; None if either is not known.
        command: makes this run again; empty if config.json does not say.
        records: those that count; empty for searches and cliffs, of which only figures are shown.
        samples: by time; empty for servers that tell nothing.
    """

    folder: str
    label: str
    purpose: Purpose
    repeat: int
    load: float | None
    rate_per_s: float | None
    slo_s: float | None
    ranks: Mapping[str, int]
    active_over_slots: float | None
    command: str
    figures: RunFigures
    records: tuple[RequestRecord, ...] = ()
    samples: tuple[Sample, ...] = ()


def figures_of(
    sent: Sequence[RequestRecord], window: Window, slo_s: float | None
) -> RunFigures | None:
    """The figures of requests that arrive in the window; None if there are none.

    Rates are over the window, or to the last completed answer where that came later.
    """
    records = window.measured(sent)
    if not records:
        return None
    completed = [record for record in records if record.is_completed]
    ends_s = [record.end_s for record in completed or records]
    if window.duration_s < math.inf:
        ends_s.append(window.duration_s)
    duration_s = max(ends_s) - window.warmup_s
    per_s = 1.0 / duration_s if duration_s > 0.0 else 0.0
    return RunFigures(
        requests=len(records),
        completed=len(completed),
        ttft=spread(ttfts_s(records)),
        token_gap=spread(token_gaps_s(records)),
        requests_per_s=len(completed) * per_s,
        output_tokens_per_s=sum(record.output_tokens for record in completed) * per_s,
        slo_share=share_in_time(records, slo_s),
        errors=by_cause(records),
        lateness=lateness(sent),
    )


def ttft_p50_s(figures: RunFigures) -> float | None:
    """None if no request was completed."""
    return figures.ttft.p50_s if figures.ttft else None


def ttft_p99_s(figures: RunFigures) -> float | None:
    """None if no request was completed."""
    return figures.ttft.p99_s if figures.ttft else None


def median_of(
    runs: Iterable[RecordedRun], figure_of: Callable[[RunFigures], float | None]
) -> float | None:
    """The middle of a figure over repeats; None if no run has it."""
    values = [value for run in runs if (value := figure_of(run.figures)) is not None]
    return statistics.median(values) if values else None
