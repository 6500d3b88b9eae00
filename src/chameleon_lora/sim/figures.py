"""A simulated run in numbers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from chameleon_lora.metrics.summary import Spread, spread
from chameleon_lora.sim.outcome import Found, SimOutcome, SimRecord


@dataclass(frozen=True, slots=True)
class SimFigures:
    """What a run says of the requests that arrived after its warm-up.

    Attributes:
        requests: that arrived after the warm-up; all are waited for.
        failed: of them, whose adapter could not be loaded.
        gap: times between two tokens of a request (ITL).
        per_token: mean time between tokens of each request (TPOT).
        queue_share: of the time from arrival to end, before admission; summed over requests.
        requests_per_s: ended per second, from the end of the warm-up to the last end.
        hit_share: of requests with an adapter, that found it in device memory, idle or in use.
        load: what steps waited for adapters, over the requests that did not find theirs.
        link_share: of the time, in which the host link copied.
        held_share, used_share: of the KV blocks, held by adapters and by requests, over the run.
    """

    requests: int
    failed: int
    ttft: Spread
    latency: Spread
    gap: Spread | None
    per_token: Spread | None
    queue_share: float
    requests_per_s: float
    output_tokens_per_s: float
    hit_share: float
    load: Spread | None
    link_share: float
    held_share: float
    used_share: float
    preemptions: int
    squashes: int
    slo_share: float | None = None


def figures(outcome: SimOutcome, warm_up_s: float = 0.0, slo_s: float | None = None) -> SimFigures:
    """The figures of a run of which at least one request arrived after `warm_up_s` and ended."""
    arrived = [r for r in outcome.records if r.arrival_s >= warm_up_s]
    ended = [r for r in arrived if r.end_s is not None]
    ttfts_s = [r.ttft_s for r in ended if r.ttft_s is not None]
    ttft = spread(ttfts_s)
    latency = spread([_latency_s(r) for r in ended])
    assert ttft is not None and latency is not None, "no request ended after the warm-up"
    span_s = max(outcome.duration_s - warm_up_s, 1e-9)
    adapters = [r for r in ended if r.found is not Found.NONE]
    misses = [r for r in adapters if r.found in (Found.HOST, Found.LINK)]
    blocks = max(1, outcome.kv_blocks) * max(outcome.duration_s, 1e-9)
    return SimFigures(
        requests=len(arrived),
        failed=len(arrived) - len(ended),
        ttft=ttft,
        latency=latency,
        gap=_weighted(outcome.gaps),
        per_token=spread([_per_token_s(r) for r in ended if r.request.output_tokens > 1]),
        queue_share=queue_share(ended),
        requests_per_s=len(ended) / span_s,
        output_tokens_per_s=sum(r.request.output_tokens for r in ended) / span_s,
        hit_share=1 - len(misses) / len(adapters) if adapters else 1.0,
        load=spread([r.load_s for r in misses]),
        link_share=outcome.link_busy_s / max(outcome.duration_s, 1e-9),
        held_share=outcome.held_block_s / blocks,
        used_share=outcome.used_block_s / blocks,
        preemptions=outcome.preemptions,
        squashes=outcome.squashes,
        slo_share=None if slo_s is None else sum(t <= slo_s for t in ttfts_s) / len(arrived),
    )


def queue_share(records: Sequence[SimRecord]) -> float:
    """Share of the records' time from arrival to end that they spent before admission."""
    latency_s = sum(map(_latency_s, records))
    waited_s = sum((r.admitted_s or 0.0) - r.arrival_s for r in records if r.admitted_s is not None)
    return waited_s / latency_s if latency_s else 0.0


def _per_token_s(record: SimRecord) -> float:
    assert record.end_s is not None and record.first_s is not None
    return (record.end_s - record.first_s) / (record.request.output_tokens - 1)


def _latency_s(record: SimRecord) -> float:
    assert record.end_s is not None
    return record.end_s - record.arrival_s


def _weighted(gaps: Sequence[tuple[float, int]]) -> Spread | None:
    """The spread of values that stand for several each; a percentile is the value that reaches it."""
    counts: Counter[float] = Counter()
    for gap_s, count in gaps:
        counts[gap_s] += count
    total = counts.total()
    if not total:
        return None
    ordered = sorted(counts.items())
    targets = [0.50 * total, 0.90 * total, 0.99 * total]
    found: list[float] = []
    seen = 0
    for gap_s, count in ordered:
        seen += count
        while len(found) < len(targets) and seen >= targets[len(found)]:
            found.append(gap_s)
    p50_s, p90_s, p99_s = found
    mean_s = sum(gap_s * count for gap_s, count in ordered) / total
    return Spread(total, mean_s, p50_s, p90_s, p99_s, ordered[-1][0])
