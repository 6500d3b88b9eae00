"""How long requests waited: distributions, against load, and at the cliff."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Sequence

from chameleon_lora.bench.run_folder import Purpose
from chameleon_lora.metrics.record import RequestRecord, token_gaps_s, ttfts_s
from chameleon_lora.metrics.summary import percentile, ratio
from chameleon_lora.report.page import Section, Sheet
from chameleon_lora.report.plot import Curve, Plot
from chameleon_lora.report.points import AxisScale, Points, load_points, of_arm, search_points
from chameleon_lora.report.reading import Evidence
from chameleon_lora.report.run import (
    RecordedRun,
    RunFigures,
    median_of,
    ttft_p50_s,
    ttft_p99_s,
)
from chameleon_lora.report.table import MILLISECONDS, Table, listed, ms, plain

MOST_DISTRIBUTIONS = 4  # plots of one kind; a sweep may have many loads
CURVE_POINTS, TAIL_POINTS = 100, 60
TAIL = 0.98  # from here on points are denser: it is where arms differ
LEAST_MS = 0.1  # a logarithmic axis has no 0, and tokens that come together have no gap

ValuesOf = Callable[[Sequence[RequestRecord]], Sequence[float]]
FigureOf = Callable[[RunFigures], float | None]


def distribution_sections(evidence: Evidence) -> tuple[Section, ...]:
    """Time to first token, and time between tokens, a plot a load."""
    points = load_points(evidence)
    if points is None:
        note = ("There is no run at a fixed load here, so there are no distributions.",)
        return (Section("ttft", "Time to first token", note),)
    shown = _spread_out(points.runs)
    notes = ["Of each time, how many requests took no longer. All repeats together."]
    if len(shown) < len(points.runs):
        names = listed([points.name(load) for load, _ in shown])
        notes.append(f"Of {len(points.runs)} loads, these are shown: {names}.")
    sections = (
        ("ttft", "Time to first token", "time to first token", ttfts_s),
        ("gaps", "Time between tokens", "time between tokens", token_gaps_s),
    )
    return tuple(
        Section(
            key,
            title,
            tuple(notes) if key == "ttft" else ("Of all answers' tokens together.",),
            tuple(
                _distribution(evidence, f"{title}, {points.name(load)}", words, runs, values_of)
                for load, runs in shown
            ),
        )
        for key, title, words, values_of in sections
    )


def load_section(evidence: Evidence) -> Section:
    """P99 and P50 time to first token against load; those of the search beside them."""
    points, searched = load_points(evidence), search_points(evidence)
    plots: list[Plot] = []
    notes: list[str] = []
    if points and points.scale is not AxisScale.NONE and len(points.runs) > 1:
        plots += [
            _against_load(evidence, points, "P99 time to first token", ttft_p99_s),
            _against_load(evidence, points, "P50 time to first token", ttft_p50_s),
        ]
        notes.append("Medians over repeats.")
    else:
        notes.append("Runs at two or more loads are needed for this plot.")
    if searched:
        title = "P99 time to first token in the search"
        plots.append(_against_load(evidence, searched, title, ttft_p99_s))
    return Section("load", "Latency against load", tuple(notes), tuple(plots))


def cliff_section(evidence: Evidence) -> Section:
    """P50 time to first token where more adapters are active than there are slots."""
    values = _cliff_values(evidence)
    title = "More adapters than slots"
    if not values:
        note = "No run varied the number of active adapters, so there is no cliff to see."
        return Section("cliff", title, (note,))
    plot = Plot(
        "P50 time to first token by adapters",
        "active adapters over slots",
        "ms",
        tuple(
            Curve(label, xs, tuple(values[label, x] * MILLISECONDS for x in xs), number)
            for number, label in enumerate(evidence.arms)
            if (xs := tuple(sorted(x for other, x in values if other == label)))
        ),
        has_log_y=True,
        has_log_x=True,
    )
    note = "The rate stays the same; only the number of adapters that requests name grows."
    return Section("cliff", title, (note,), (plot,), (_cliff_sheet(evidence, values),))


def _spread_out(
    groups: Sequence[tuple[float, tuple[RecordedRun, ...]]],
) -> tuple[tuple[float, tuple[RecordedRun, ...]], ...]:
    """The first, the last, and some between them."""
    last = len(groups) - 1
    if last < MOST_DISTRIBUTIONS:
        return tuple(groups)
    return tuple(
        groups[round(number * last / (MOST_DISTRIBUTIONS - 1))]
        for number in range(MOST_DISTRIBUTIONS)
    )


def _distribution(
    evidence: Evidence, title: str, x_words: str, runs: Sequence[RecordedRun], values_of: ValuesOf
) -> Plot:
    curves: list[Curve] = []
    words: list[str] = []
    for number, label in enumerate(evidence.arms):
        values_ms = sorted(
            max(LEAST_MS, value_s * MILLISECONDS)
            for run in of_arm(runs, label)
            for value_s in values_of(run.records)
        )
        if values_ms:
            xs, ys = distribution_curve(values_ms)
            curves.append(Curve(label, xs, ys, number))
            half, most = percentile(values_ms, 50.0), percentile(values_ms, 99.0)
            words.append(f"{label}: half within {plain(half)} ms, 99 % within {plain(most)} ms.")
    return Plot(
        title,
        f"{x_words}, ms",
        "% within that time",
        tuple(curves),
        has_log_x=True,
        has_markers=False,
        words=" ".join(words) or "No request was completed.",
    )


def distribution_curve(ordered: Sequence[float]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Values and the percentage of `ordered` (ascending, not empty) that is no larger.

    At most CURVE_POINTS + TAIL_POINTS + 1 points, all of them true ones.
    """
    last = len(ordered) - 1
    shares = [TAIL * number / CURVE_POINTS for number in range(CURVE_POINTS)]
    shares += [TAIL + (1.0 - TAIL) * number / TAIL_POINTS for number in range(TAIL_POINTS + 1)]
    places = dict.fromkeys(round(share * last) for share in shares)
    return (
        tuple(ordered[place] for place in places),
        tuple(100.0 * (place + 1) / len(ordered) for place in places),
    )


def _against_load(evidence: Evidence, points: Points, title: str, figure_of: FigureOf) -> Plot:
    curves: list[Curve] = []
    for number, label in enumerate(evidence.arms):
        pairs = [
            (load, value * MILLISECONDS)
            for load, runs in points.runs
            if (value := median_of(of_arm(runs, label), figure_of)) is not None
        ]
        if pairs:
            xs, ys = zip(*pairs, strict=True)
            curves.append(Curve(label, xs, ys, number))
    return Plot(
        title,
        points.scale.value,
        "ms",
        tuple(curves),
        has_log_y=True,
        limit=None if evidence.slo_s is None else evidence.slo_s * MILLISECONDS,
    )


def _cliff_values(evidence: Evidence) -> dict[tuple[str, float], float]:
    """Seconds by arm and active adapters over slots: the comparison's, else medians of the runs."""
    if evidence.comparison and evidence.comparison.cliff:
        return {
            (point.label, point.active_over_slots): point.ttft_p50_s
            for point in evidence.comparison.cliff
        }
    values: defaultdict[tuple[str, float], list[float]] = defaultdict(list)
    for run in evidence.runs:
        value_s = ttft_p50_s(run.figures)
        if run.purpose is Purpose.CLIFF and run.active_over_slots and value_s is not None:
            values[run.label, run.active_over_slots].append(value_s)
    return {key: statistics.median(found) for key, found in values.items()}


def _cliff_sheet(evidence: Evidence, values: dict[tuple[str, float], float]) -> Sheet:
    xs = sorted({x for _, x in values})
    return Sheet(
        "P50 time to first token, ms, by active adapters over slots",
        Table(
            ("arm", *(f"{x:g}" for x in xs), "last over first"),
            tuple(
                (
                    label,
                    *(ms(values.get((label, x))) for x in xs),
                    plain(ratio(values.get((label, xs[0])), values.get((label, xs[-1])))),
                )
                for label in evidence.arms
                if any(other == label for other, _ in values)
            ),
        ),
    )
