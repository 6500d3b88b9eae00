"""A comparison as Markdown tables."""

from collections.abc import Sequence

from chameleon_lora.compare.comparison_file import (
    FIGURES,
    CliffPoint,
    ComparisonFile,
    Figure,
    Ratio,
    Sustained,
)

MISSING = "-"
NO_INTERVAL = "(one repeat: no interval)"


def comparison_table(found: ComparisonFile) -> str:
    """One table a point of load, one of throughput at the objective, one of the cliff."""
    points = sorted({ratio.point for ratio in found.ratios})
    parts = [
        f"Capacity of {found.base}: {found.capacity_per_s:.2f} requests/s; objective: "
        f"{found.slo_ttft_s * 1e3:.0f} ms to the first token.",
        *(_load_table(found.base, point, found.ratios) for point in points),
    ]
    if found.sustained:
        parts.append(_sustained_table(found.sustained))
    if found.cliff:
        parts.append(_cliff_table([arm.label for arm in found.arms], found.cliff))
    return "\n\n".join(parts)


def _load_table(base: str, point: float, ratios: Sequence[Ratio]) -> str:
    here = [ratio for ratio in ratios if ratio.point == point]
    labels = list(dict.fromkeys(ratio.label for ratio in here))
    lines = [
        f"At {point:.0%} of the capacity",
        "",
        _row("figure", base, *labels),
        _row("---", *("---:" for _ in (base, *labels))),
    ]
    for figure in FIGURES:
        found = {ratio.label: ratio for ratio in here if ratio.figure == figure.name}
        if found:
            first = next(iter(found.values()))
            cells = [_value(figure, first.base)]
            cells += [_compared(figure, found.get(label)) for label in labels]
            lines.append(_row(figure.text, *cells))
    return "\n".join(lines)


def _sustained_table(rows: Sequence[Sustained]) -> str:
    lines = [
        "The highest load that meets the objective",
        "",
        _row("arm", "requests/s", "ratio", "pairs"),
        _row("---", "---:", "---:", "---:"),
    ]
    for row in rows:
        ratio = MISSING if row.ratio is None else with_interval(row.ratio, row.low, row.high)
        lines.append(_row(row.label, f"{row.rate_per_s:.2f}", ratio, str(row.pairs or MISSING)))
    return "\n".join(lines)


def _cliff_table(labels: Sequence[str], cliff: Sequence[CliffPoint]) -> str:
    values = sorted({point.active_over_slots for point in cliff})
    p50s_s = {(point.label, point.active_over_slots): point.ttft_p50_s for point in cliff}
    lines = [
        "P50 time to first token by adapters for each slot",
        "",
        _row("arm", *(f"{value:g}" for value in values), "last over first"),
        _row("---", *("---:" for _ in (*values, ""))),
    ]
    for label in labels:
        mine = [p50s_s[label, value] for value in values if (label, value) in p50s_s]
        if mine:
            cells = [f"{p50_s * 1e3:.0f} ms" for p50_s in mine]
            lines.append(_row(label, *cells, f"{mine[-1] / mine[0]:.2f}"))
    return "\n".join(lines)


def _compared(figure: Figure, ratio: Ratio | None) -> str:
    if ratio is None:
        return MISSING
    return f"{_value(figure, ratio.value)}, {with_interval(ratio.ratio, ratio.low, ratio.high)}"


def with_interval(ratio: float, low: float | None, high: float | None) -> str:
    """A ratio, and its interval or why there is none."""
    bounds = NO_INTERVAL if low is None or high is None else f"[{low:.2f}, {high:.2f}]"
    return f"{ratio:.2f} {bounds}"


def _value(figure: Figure, value: float) -> str:
    return f"{value * 1e3:,.0f} ms" if figure.is_in_seconds else f"{value:,.2f}"


def _row(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"
