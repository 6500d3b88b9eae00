"""What a comparison says: each arm's figures over the base arm's."""

import math
import statistics
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from chameleon_lora.bench.run_folder import Purpose
from chameleon_lora.compare.arm_run import RunResult
from chameleon_lora.compare.comparison_file import Ratio, Sustained
from chameleon_lora.compare.intervals import Interval, ValuesOf, paired, percentile_ratio, ratio_of
from chameleon_lora.metrics.fairness import fairness
from chameleon_lora.metrics.record import token_gaps_s, ttfts_s
from chameleon_lora.metrics.summary import percentile

Repeats = Mapping[int, Sequence[RunResult]]
OfRun = Callable[[RunResult], float | None]


@dataclass(frozen=True, slots=True)
class FigureSpec:
    """How a figure is taken of a run.

    Attributes:
        name: of one of `comparison_file.FIGURES`.
        percent: which percentile of the requests' `values_of` it is; None for figures of a whole
            run, whose intervals draw repeats only.
        decides: whether repeats go on until its interval is narrow.
    """

    name: str
    of_run: OfRun
    values_of: ValuesOf | None = None
    percent: float | None = None
    decides: bool = False


def _percentile_of(values_of: ValuesOf, percent: float) -> OfRun:
    def of_run(result: RunResult) -> float | None:
        values = values_of(result.records)
        return percentile(values, percent) if values else None

    return of_run


def _output_throughput(result: RunResult) -> float | None:
    return result.output_tokens_per_s or None


def _unfairness(result: RunResult) -> float | None:
    found = fairness(result.records)
    return None if found is None else found.worst_over_median


SPECS = (
    FigureSpec("ttft_p50", _percentile_of(ttfts_s, 50.0), ttfts_s, 50.0),
    FigureSpec("ttft_p99", _percentile_of(ttfts_s, 99.0), ttfts_s, 99.0, decides=True),
    FigureSpec("itl_p99", _percentile_of(token_gaps_s, 99.0), token_gaps_s, 99.0),
    FigureSpec("output_throughput", _output_throughput),
    FigureSpec("fairness", _unfairness),
)


def load_ratios(labels: Sequence[str], results: Mapping[str, Repeats]) -> tuple[Ratio, ...]:
    """Ratios to the base of every other arm, at every point, of each figure; by repeats that both arms have made."""
    base = labels[0]
    points = sorted(
        {run.point.value for runs in results[base].values() for run in runs if _is_load(run)}
    )
    return tuple(
        ratio
        for label in labels[1:]
        for point in points
        for figure in SPECS
        if (ratio := _ratio(figure, label, point, _pairs(results, base, label, point)))
    )


def sustained(
    labels: Sequence[str], highest: Mapping[str, Mapping[int, float]]
) -> tuple[Sustained, ...]:
    """The highest load of each arm that was searched; the ratio is to the base's in the same repeat."""
    base = highest[labels[0]]
    return tuple(
        _sustained(label, highest[label], {} if label == labels[0] else base)
        for label in labels
        if highest[label]
    )


def _sustained(label: str, mine: Mapping[int, float], base: Mapping[int, float]) -> Sustained:
    both = sorted(set(base) & set(mine))
    found = ratio_of([base[repeat] for repeat in both], [mine[repeat] for repeat in both])
    return Sustained(
        label=label,
        rate_per_s=statistics.median(mine.values()),
        ratio=None if found is None else found.ratio,
        low=None if found is None else found.low,
        high=None if found is None else found.high,
        pairs=len(both),
    )


def is_tight(ratios: Sequence[Ratio], width: float) -> bool:
    """Is every interval that decides within `width` of its ratio? False without any."""
    deciding = {figure.name for figure in SPECS if figure.decides}
    wide = [_width(r) / r.ratio for r in ratios if r.figure in deciding and r.ratio]
    return bool(wide) and max(wide) <= width


def _width(ratio: Ratio) -> float:
    return math.inf if ratio.low is None or ratio.high is None else ratio.high - ratio.low


def _is_load(run: RunResult) -> bool:
    return run.point.purpose is Purpose.LOAD


def _pairs(
    results: Mapping[str, Repeats], base: str, label: str, point: float
) -> list[tuple[RunResult, RunResult]]:
    def run_of(arm: str, repeat: int) -> RunResult | None:
        runs = results[arm].get(repeat, ())
        found = (r for r in runs if _is_load(r) and r.point.value == point)
        return next(found, None)

    both = ((run_of(base, repeat), run_of(label, repeat)) for repeat in sorted(results[base]))
    return [(one, two) for one, two in both if one is not None and two is not None]


def _ratio(
    figure: FigureSpec,
    label: str,
    point: float,
    runs: Sequence[tuple[RunResult, RunResult]],
) -> Ratio | None:
    both = [(figure.of_run(one), figure.of_run(two)) for one, two in runs]
    values = [(base, value) for base, value in both if base is not None and value is not None]
    interval = _interval(figure, runs, values)
    if interval is None:
        return None
    return Ratio(
        label,
        figure.name,
        point,
        statistics.median(base for base, _ in values),
        statistics.median(value for _, value in values),
        interval.ratio,
        interval.low,
        interval.high,
        interval.pairs,
    )


def _interval(
    figure: FigureSpec,
    runs: Sequence[tuple[RunResult, RunResult]],
    values: Sequence[tuple[float, float]],
) -> Interval | None:
    if not values:
        return None
    if figure.values_of is None or figure.percent is None:
        return ratio_of([base for base, _ in values], [value for _, value in values])
    pairs = [paired(one.records, two.records, figure.values_of) for one, two in runs]
    return percentile_ratio(pairs, figure.percent)
