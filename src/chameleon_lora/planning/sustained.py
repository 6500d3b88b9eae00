"""The highest load that meets an objective: throughput at SLO, as the paper's section 5 has it."""

from collections.abc import Callable
from dataclasses import dataclass

from chameleon_lora.metrics.highest import highest_rate
from chameleon_lora.sim.figures import SimFigures

AtRate = Callable[[float], SimFigures]


@dataclass(frozen=True, slots=True)
class SustainedLoad:
    """The load that an engine sustains.

    Attributes:
        rate_per_s: the highest load found whose P99 TTFT meets the objective; 0 if none does.
        figures: at that load.
        tried: (load, P99 TTFT in seconds) of each run, by load.
    """

    rate_per_s: float
    figures: SimFigures | None
    tried: tuple[tuple[float, float], ...]


def sustained_rate(
    at_rate: AtRate,
    slo_s: float,
    start_per_s: float,
    tolerance: float = 0.03,
    gap_slo_s: float = float("inf"),
) -> SustainedLoad:
    """Search by doubling and halving, until the bracket is within `tolerance` of the load.

    `at_rate` must draw the same requests at every rate, only closer together. 8 to 12 runs. The
    P99 of times between tokens must be within `gap_slo_s`, too.
    """
    tried: dict[float, SimFigures] = {}

    def holds(rate: float) -> bool:
        if rate not in tried:
            tried[rate] = at_rate(rate)
        gap = tried[rate].gap
        return tried[rate].ttft.p99_s <= slo_s and (gap is None or gap.p99_s <= gap_slo_s)

    rate_per_s = highest_rate(holds, start_per_s, tolerance)
    by_rate = tuple(sorted((rate, run.ttft.p99_s) for rate, run in tried.items()))
    return SustainedLoad(rate_per_s, tried.get(rate_per_s), by_rate)
