"""Plots as PNG and SVG; the only file that needs matplotlib.

Curves differ in colour (Okabe and Ito's palette, told apart by the colour-blind), in dashes and in
markers. The same plot gives the same bytes: no date, no random ids, no settings of the user's.
"""

import io
import math
from collections.abc import Iterable, Sequence
from itertools import cycle, islice

import matplotlib.style
from matplotlib.axes import Axes
from matplotlib.axis import Axis
from matplotlib.figure import Figure
from matplotlib.ticker import FixedLocator, LogLocator, NullLocator, StrMethodFormatter

from chameleon_lora.report.plot import BACKGROUND, INK, Curve, Drawing, Plot

WIDTH_INCHES, HEIGHT_INCHES = 6.0, 3.75
LEGEND_ROW_INCHES, LEGEND_COLUMNS = 0.22, 2
CURVES_WITH_LEGEND_INSIDE = 4  # of more, the legend would lie on the curves
MOST_TICKS, WIDE_DECADES = 8, 2.0  # along a logarithmic x axis
PNG_DOTS_PER_INCH = 200.0
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#7F7F7F")
DASHES = ("-", "--", "-.", ":", (0, (5, 1, 1, 1, 1, 1)))
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*")
GRID = "#8c959f"
STYLE = {
    "svg.hashsalt": "chameleon",
    "svg.fonttype": "none",  # text stays text: smaller, can be read aloud
    "text.parse_math": False,
    "font.size": 11.5,
    "figure.facecolor": BACKGROUND,
    "axes.facecolor": "none",
    "axes.edgecolor": GRID,
    "axes.labelcolor": INK,
    "axes.titlesize": 12.5,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "text.color": INK,
    "xtick.color": INK,
    "ytick.color": INK,
    "grid.color": GRID,
    "grid.alpha": 0.3,
    "lines.linewidth": 2.0,
    "lines.markersize": 5.0,
    "legend.frameon": False,
    "legend.fontsize": 10.5,
}


def draw(plot: Plot) -> Drawing:
    """The plot as the bytes of both files, readable at a width of 600 pixels."""
    with matplotlib.style.context(["default", STYLE]):
        figure = Figure(figsize=(WIDTH_INCHES, HEIGHT_INCHES), layout="constrained")
        axes = figure.add_subplot()
        _fill(axes, plot)
        _add_legend(figure, axes, is_inside=plot.has_markers)
        png, svg = io.BytesIO(), io.BytesIO()
        figure.savefig(png, format="png", dpi=PNG_DOTS_PER_INCH, metadata={"Software": None})
        figure.savefig(svg, format="svg", metadata={"Date": None, "Creator": None})
    return Drawing(png.getvalue(), svg.getvalue().decode("utf-8"))


def _fill(axes: Axes, plot: Plot) -> None:
    for number, curve in enumerate(plot.curves):
        _add(axes, curve, number if curve.look is None else curve.look, plot)
    if plot.limit is not None:
        axes.axhline(plot.limit, color=INK, linestyle=(0, (1, 2)), linewidth=1.2, label="objective")
    if plot.has_log_y and _has_logarithms(y for curve in plot.curves for y in curve.ys):
        axes.set_yscale("log")
        _number_plainly(axes.yaxis)
    if plot.has_log_x and _has_logarithms(x for curve in plot.curves for x in curve.xs):
        axes.set_xscale("log")
        _number_plainly(axes.xaxis)
        _space_out(axes.xaxis, [x for curve in plot.curves for x in curve.xs if x > 0.0])
    axes.set_title(plot.title, loc="left")
    axes.set_xlabel(plot.x_label)
    axes.set_ylabel(plot.y_label)
    axes.grid(visible=True)


def _has_logarithms(values: Iterable[float]) -> bool:
    return any(0.0 < value < math.inf for value in values)


def _number_plainly(axis: Axis) -> None:
    """How a logarithmic axis has its numbers: 0.1, 0.2, 0.5, 1 and not powers of ten."""
    axis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
    axis.set_major_formatter(StrMethodFormatter("{x:g}"))
    axis.set_minor_locator(NullLocator())


def _space_out(axis: Axis, values: Sequence[float]) -> None:
    """Numbers that stand beside each other: at the values if they are few, else fewer a decade."""
    points = sorted(set(values))
    decades = math.log10(points[-1] / points[0])
    if len(points) <= MOST_TICKS:
        axis.set_major_locator(FixedLocator(points))
    elif decades > WIDE_DECADES:
        axis.set_major_locator(
            LogLocator(subs=(1.0, 3.0) if decades < 2 * WIDE_DECADES else (1.0,))
        )


def _add_legend(figure: Figure, axes: Axes, *, is_inside: bool) -> None:
    """Inside where it fits and may be; else below, and the figure grows by its height."""
    labels = axes.get_legend_handles_labels()[1]
    if len(labels) > CURVES_WITH_LEGEND_INSIDE + 1 or (labels and not is_inside):
        rows = math.ceil(len(labels) / LEGEND_COLUMNS)
        figure.set_figheight(HEIGHT_INCHES + rows * LEGEND_ROW_INCHES)
        figure.legend(loc="outside lower center", ncols=LEGEND_COLUMNS)
    elif labels:
        axes.legend()


def _add(axes: Axes, curve: Curve, number: int, plot: Plot) -> None:
    """Colour, dashes and marker run through cycles of different lengths, so that few curves share all."""
    colour, dashes, marker = (
        next(islice(cycle(kinds), number, None)) for kinds in (COLOURS, DASHES, MARKERS)
    )
    axes.plot(
        curve.xs,
        curve.ys,
        color=colour,
        linestyle=dashes,
        marker=marker if plot.has_markers else "",
        label=curve.label,
    )
