"""One run's result, by the keys of `vllm bench serve` and some of our own."""

import statistics
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from chameleon_lora.metrics.errors import by_cause
from chameleon_lora.metrics.fairness import fairness
from chameleon_lora.metrics.groups import GroupSummary, by_adapter, by_rank, by_residency
from chameleon_lora.metrics.lateness import lateness
from chameleon_lora.metrics.objectives import Objective, Objectives, attainment
from chameleon_lora.metrics.peaks import peaks
from chameleon_lora.metrics.record import RequestRecord, token_gaps_s, ttfts_s
from chameleon_lora.metrics.summary import percentile

MILLISECONDS = 1000.0


@dataclass(frozen=True, slots=True)
class Window:
    """Which requests of a run count, and what is asked of them.

    Attributes:
        warmup_s: requests that arrive before it are sent, and not counted.
        duration_s: those that arrive at it or later are not counted either.
        objectives: what a good request keeps to.
        ranks: LoRA rank by adapter, where known.
    """

    warmup_s: float
    duration_s: float
    objectives: Objectives = field(default_factory=dict)
    ranks: Mapping[str, int] = field(default_factory=dict)

    def measured(self, records: Sequence[RequestRecord]) -> tuple[RequestRecord, ...]:
        """The records that count, in their order."""
        return tuple(record for record in records if self.holds(record.arrival_s))

    def holds(self, arrival_s: float) -> bool:
        """Does a request that arrives then count?"""
        return self.warmup_s <= arrival_s < self.duration_s


def serving_result(records: Sequence[RequestRecord], window: Window) -> dict[str, Any]:
    """What summary.json holds: plain values, those of vLLM's keys in its units (ms, tokens).

    All figures are of the requests that arrive in the window. Rates are over the time from its
    begin (`warmup_s`) to its end (`duration_s`) or the last completed answer, whichever is later:
    a server that keeps up has no idle tail counted against it, one that does not cannot gain by
    answering late. Times count from the intended arrival, where vLLM's bench takes the moment of
    sending. As there, a figure without values is 0, and request_goodput without objectives null.
    """
    measured = window.measured(records)
    completed = [record for record in measured if record.is_completed]
    ends_s = [window.duration_s, *(record.end_s for record in completed)]
    duration_s = max(0.0, max(ends_s) - window.warmup_s)
    return {
        **_totals(measured, completed, duration_s, window.objectives),
        **_spread_ms("ttft", ttfts_s(completed)),
        **_spread_ms("tpot", [r.per_token_s for r in completed if r.per_token_s is not None]),
        **_spread_ms("itl", token_gaps_s(completed)),
        **_spread_ms("e2el", [record.latency_s for record in completed]),
        **_beside_vllm(measured, records, window),
    }


def _totals(
    measured: Sequence[RequestRecord],
    completed: Sequence[RequestRecord],
    duration_s: float,
    objectives: Objectives,
) -> dict[str, Any]:
    input_tokens = sum(record.prompt_tokens for record in completed)
    output_tokens = sum(record.output_tokens for record in completed)
    met, busiest = attainment(measured, objectives), peaks(measured)
    per_s = 1.0 / duration_s if duration_s > 0.0 else 0.0
    good = None if not objectives else met.good if met else 0
    return {
        "duration": duration_s,
        "completed": len(completed),
        "failed": len(measured) - len(completed),
        "total_input_tokens": input_tokens,
        "total_output_tokens": output_tokens,
        "request_throughput": len(completed) * per_s,
        "request_goodput": None if good is None else good * per_s,
        "output_throughput": output_tokens * per_s,
        "total_token_throughput": (input_tokens + output_tokens) * per_s,
        "max_output_tokens_per_s": float(busiest.output_tokens),
        "max_concurrent_requests": busiest.requests,
    }


def _spread_ms(name: str, values_s: Sequence[float]) -> dict[str, Any]:
    """Mean, median, population standard deviation and P99 of `values_s`, in milliseconds."""
    values_ms = [value_s * MILLISECONDS for value_s in values_s] or [0.0]
    return {
        f"mean_{name}_ms": statistics.fmean(values_ms),
        f"median_{name}_ms": percentile(values_ms, 50.0),
        f"std_{name}_ms": statistics.pstdev(values_ms),
        f"p99_{name}_ms": percentile(values_ms, 99.0),
    }


def _beside_vllm(
    measured: Sequence[RequestRecord], records: Sequence[RequestRecord], window: Window
) -> dict[str, Any]:
    """What vLLM's result does not have. Lateness is of all requests sent, warm-up included."""
    objectives = window.objectives
    slo_s = objectives.get(Objective.TTFT)
    met, fair, late = attainment(measured, objectives), fairness(measured), lateness(records)
    return {
        "slo": {
            "objectives_ms": {
                objective.value: most_s * MILLISECONDS for objective, most_s in objectives.items()
            },
            "share": None if met is None else met.share,
        },
        "per_adapter": _groups_ms(by_adapter(measured, slo_s), window.ranks),
        "per_rank": _groups_ms(by_rank(measured, window.ranks, slo_s)),
        "per_residency": _groups_ms(by_residency(measured, slo_s)),
        "fairness": None if fair is None else asdict(fair),
        "lateness": None if late is None else asdict(late),
        "errors": {count.cause: count.count for count in by_cause(measured)},
    }


def _groups_ms(
    groups: Sequence[GroupSummary], ranks: Mapping[str, int] | None = None
) -> dict[str, dict[str, Any]]:
    """By group; times are null where no request of it was completed."""
    return {
        group.key: {
            "requests": group.requests,
            "completed": group.completed,
            "failed": group.failed,
            **({} if ranks is None else {"rank": ranks.get(group.key)}),
            "mean_ttft_ms": group.ttft.mean_s * MILLISECONDS if group.ttft else None,
            "median_ttft_ms": group.ttft.p50_s * MILLISECONDS if group.ttft else None,
            "p99_ttft_ms": group.ttft.p99_s * MILLISECONDS if group.ttft else None,
            "p99_itl_ms": group.token_gap.p99_s * MILLISECONDS if group.token_gap else None,
            "slo_share": group.slo_share,
        }
        for group in groups
    }
