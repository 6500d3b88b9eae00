"""Two runs of the same requests, side by side."""

import statistics
from collections.abc import Sequence

from chameleon_lora.metrics.record import RequestRecord


def paired_ttft_ratios(
    base: Sequence[RequestRecord], other: Sequence[RequestRecord]
) -> tuple[float, ...]:
    """TTFT in `other` over TTFT in `base`, request by request, by index; below 1 is faster.

    A request without a first token in either run, or with a TTFT of 0 in `base`, is left out.
    """
    base_ttfts = {record.index: record.ttft_s for record in base}
    ratios: list[float] = []
    for record in sorted(other, key=lambda record: record.index):
        base_s, other_s = base_ttfts.get(record.index), record.ttft_s
        if base_s and other_s is not None:
            ratios.append(other_s / base_s)
    return tuple(ratios)


def median_ratio(ratios: Sequence[float]) -> float | None:
    """The middle of paired ratios; None if there are none."""
    return statistics.median(ratios) if ratios else None


def ratio(base: float | None, other: float | None) -> float | None:
    """`other` over `base`; None where either is missing or `base` is 0."""
    return None if not base or other is None else other / base
