"""The demo's result as one table."""

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.compare.observations import Observations
from chameleon_lora.metrics.compare import median_ratio, paired_ttft_ratios, ratio
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.metrics.summary import RunSummary

_COLUMNS = "{:<32}{:>12}{:>12}{:>9}"
_MISSING = "-"


@dataclass(frozen=True, slots=True)
class ArmResult:
    """One server's run.

    Attributes:
        observations: None if the server had no observer.
    """

    name: str
    folder: Path
    records: tuple[RequestRecord, ...]
    summary: RunSummary
    observations: Observations | None


@dataclass(frozen=True, slots=True)
class Figure:
    """One line of the table: what it is called, how it is read off a run, digits after the point."""

    label: str
    of: Callable[[ArmResult], float | None]
    digits: int


def comparison_table(base: ArmResult, other: ArmResult) -> str:
    """A line a figure: `base`, `other`, and `other` over `base`; "-" where there is none."""
    lines = [_COLUMNS.format("", base.name, other.name, "ratio")]
    for figure in FIGURES:
        base_value, other_value = figure.of(base), figure.of(other)
        lines.append(
            _COLUMNS.format(
                figure.label,
                _number(base_value, figure.digits),
                _number(other_value, figure.digits),
                _number(ratio(base_value, other_value), 2),
            )
        )
    paired = median_ratio(paired_ttft_ratios(base.records, other.records))
    lines.append(_COLUMNS.format("TTFT, median of paired ratios", "", "", _number(paired, 2)))
    return "\n".join(lines)


def _ttft_p50_ms(arm: ArmResult) -> float | None:
    return None if arm.summary.ttft is None else arm.summary.ttft.p50_s * 1e3


def _ttft_p99_ms(arm: ArmResult) -> float | None:
    return None if arm.summary.ttft is None else arm.summary.ttft.p99_s * 1e3


def _token_gap_p99_ms(arm: ArmResult) -> float | None:
    return None if arm.summary.token_gap is None else arm.summary.token_gap.p99_s * 1e3


def _cold_loads(arm: ArmResult) -> float | None:
    return None if arm.observations is None else arm.observations.cold_loads


def _stalled_ms(arm: ArmResult) -> float | None:
    return None if arm.observations is None else arm.observations.stalled_s * 1e3


def _number(value: float | None, digits: int) -> str:
    return _MISSING if value is None else f"{value:,.{digits}f}"


FIGURES = (
    Figure("requests completed", lambda arm: arm.summary.completed, 0),
    Figure("requests failed", lambda arm: arm.summary.failed, 0),
    Figure("TTFT P50, ms", _ttft_p50_ms, 0),
    Figure("TTFT P99, ms", _ttft_p99_ms, 0),
    Figure("time between tokens P99, ms", _token_gap_p99_ms, 0),
    Figure("throughput, output tokens/s", lambda arm: arm.summary.output_tokens_per_s, 1),
    Figure("cold loads", _cold_loads, 0),
    Figure("stalled, ms", _stalled_ms, 0),
)
