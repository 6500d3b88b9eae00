"""What came out, in tables: ratios to the base, rates held, and the figures of each arm."""

import shlex
from collections.abc import Callable, Sequence

from chameleon_lora.compare.comparison_file import FIGURES, ComparisonFile, Figure, Ratio, Sustained
from chameleon_lora.report.page import Section, Sheet
from chameleon_lora.report.points import AxisScale, Points, load_points, of_arm
from chameleon_lora.report.reading import Evidence
from chameleon_lora.report.run import RecordedRun, RunFigures, median_of, ttft_p50_s, ttft_p99_s
from chameleon_lora.report.table import (
    BETTER,
    MILLISECONDS,
    MISSING,
    WORSE,
    Table,
    interval,
    ms,
    percent,
    plain,
)

_FIGURES = {figure.name: figure for figure in FIGURES}


def headline_section(evidence: Evidence) -> Section:
    """The comparison's ratios with their intervals; without one, the figures of the runs."""
    found, points = evidence.comparison, load_points(evidence)
    sheets: list[Sheet] = []
    notes: list[str] = []
    if found and found.ratios:
        pairs = sorted({ratio.pairs for ratio in found.ratios})
        told = str(pairs[0]) if len(pairs) == 1 else f"{pairs[0]} to {pairs[-1]}"
        notes.append(
            f"Ratios to {found.base} on the same requests: the median of {told} pairs and, in "
            f"brackets, its 95 % bootstrap interval. {BETTER} better and {WORSE} worse: the interval "
            "does not hold 1."
        )
        sheets.append(_ratio_sheet(found))
    if found and found.sustained:
        sheets.append(_sustained_sheet(found))
    if points:
        sheets.append(_figure_sheet(evidence, points))
    return Section("headline", "In short", tuple(notes), (), tuple(sheets))


def arms_section(evidence: Evidence) -> Section | None:
    """In what the arms differ, and how each was started; None without a comparison."""
    found = evidence.comparison
    if found is None or not found.arms:
        return None
    differs = Table(
        ("arm", "differs in"),
        tuple(
            (
                arm.label,
                "; ".join(arm.differs)
                or ("the base of the comparison" if arm.label == found.base else "nothing"),
            )
            for arm in found.arms
        ),
    )
    commands = Table(
        ("arm", "command"), tuple((arm.label, shlex.join(arm.command)) for arm in found.arms)
    )
    note = f"Against {found.base}; the same requests, one server at a time."
    sheets = (Sheet("", differs), Sheet("How each server was started", commands, True))
    return Section("arms", "What differs", (note,), (), sheets)


def _ratio_sheet(found: ComparisonFile) -> Sheet:
    """A row a figure and load, a column an arm; the base's own value first."""
    labels = list(dict.fromkeys(ratio.label for ratio in found.ratios))
    cells = {(ratio.figure, ratio.point, ratio.label): ratio for ratio in found.ratios}
    order = list(_FIGURES)
    keys = sorted(
        {(ratio.figure, ratio.point) for ratio in found.ratios},
        key=lambda key: (order.index(key[0]) if key[0] in order else len(order), key),
    )
    rows = tuple(
        (
            f"{_figure(figure).text}, {100.0 * point:g}\u00a0%",
            _base_value(
                [cells[key] for label in labels if (key := (figure, point, label)) in cells]
            ),
            *(_ratio_cell(cells.get((figure, point, label))) for label in labels),
        )
        for figure, point in keys
    )
    return Sheet(
        f"Ratios to {found.base}, by load in % of its capacity",
        Table(("figure and load", found.base, *labels), rows),
    )


def _figure(name: str) -> Figure:
    """One of another version is called by its name alone."""
    return _FIGURES.get(name, Figure(name, name))


def _base_value(ratios: Sequence[Ratio]) -> str:
    if not ratios:
        return MISSING
    figure, base = _figure(ratios[0].figure), ratios[0].base
    return f"{plain(base * MILLISECONDS)} ms" if figure.is_in_seconds else plain(base)


def _ratio_cell(ratio: Ratio | None) -> str:
    if ratio is None:
        return MISSING
    text = interval(ratio.ratio, ratio.low, ratio.high)
    return _sign(ratio.low, ratio.high, is_more_better=_figure(ratio.figure).is_more_better) + text


def _sign(low: float | None, high: float | None, *, is_more_better: bool) -> str:
    """Nothing if the interval holds 1 or there is none."""
    if low is None or high is None or not (low > 1.0 or high < 1.0):
        return ""
    return f"{BETTER if (low > 1.0) == is_more_better else WORSE} "


def _sustained_sheet(found: ComparisonFile) -> Sheet:
    rows = tuple(map(_sustained_row, found.sustained))
    head = ("arm", "requests/s", f"over {found.base}", "pairs")
    return Sheet(
        f"Highest rate within the objective of {ms(found.slo_ttft_s)} ms", Table(head, rows)
    )


def _sustained_row(held: Sustained) -> tuple[str, ...]:
    text = _sign(held.low, held.high, is_more_better=True)
    text += interval(held.ratio, held.low, held.high)
    return (held.label, plain(held.rate_per_s), text, str(held.pairs) if held.pairs else MISSING)


def _figure_sheet(evidence: Evidence, points: Points) -> Sheet:
    """A row an arm and load: medians over repeats."""
    head = (
        "arm",
        "load",
        "runs",
        "requests",
        "failed",
        "P50 TTFT, ms",
        "P99 TTFT, ms",
        "P99 gap, ms",
        "requests/s",
        "tokens/s",
        "in time",
    )
    rows = tuple(
        (label, _load_word(points, load), *_figure_cells(found))
        for load, runs in points.runs
        for label in evidence.arms
        if (found := of_arm(runs, label))
    )
    return Sheet("Each arm's figures, medians over repeats", Table(head, rows))


def _load_word(points: Points, load: float) -> str:
    return f"{load:g} %" if points.scale is AxisScale.CAPACITY else points.name(load)


def _figure_cells(runs: Sequence[RecordedRun]) -> tuple[str, ...]:
    figures: tuple[Callable[[RunFigures], float | None], ...] = (
        ttft_p50_s,
        ttft_p99_s,
        lambda figures: figures.token_gap.p99_s if figures.token_gap else None,
    )
    return (
        str(len(runs)),
        str(sum(run.figures.requests for run in runs)),
        str(sum(run.figures.requests - run.figures.completed for run in runs)),
        *(ms(median_of(runs, figure_of)) for figure_of in figures),
        plain(median_of(runs, lambda figures: figures.requests_per_s)),
        plain(median_of(runs, lambda figures: figures.output_tokens_per_s)),
        percent(median_of(runs, lambda figures: figures.slo_share)),
    )
