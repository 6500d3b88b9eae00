"""What a plot shows, before anyone draws it, and what a drawing of it is."""

from collections.abc import Callable
from dataclasses import dataclass

INK, BACKGROUND = "#1f2328", "#ffffff"


@dataclass(frozen=True, slots=True)
class Curve:
    """Points of one arm, by x.

    Attributes:
        look: which colour, dashes and marker, so that an arm has the same in every plot; None for
            the curve's place in its plot.
    """

    label: str
    xs: tuple[float, ...]
    ys: tuple[float, ...]
    look: int | None = None


@dataclass(frozen=True, slots=True)
class Plot:
    """Curves over one pair of axes.

    Attributes:
        limit: a horizontal line (an objective), if any.
        has_markers: each point is marked; without, only the lines are drawn.
        words: what the curves show, for those who do not see them; their ends if empty.
    """

    title: str
    x_label: str
    y_label: str
    curves: tuple[Curve, ...]
    has_log_y: bool = False
    limit: float | None = None
    has_log_x: bool = False
    has_markers: bool = True
    words: str = ""


@dataclass(frozen=True, slots=True)
class Drawing:
    """One plot in both formats.

    Attributes:
        svg: text in INK on BACKGROUND, which a page may replace by its own colours.
    """

    png: bytes
    svg: str


Draw = Callable[[Plot], Drawing]


def alt_text(plot: Plot) -> str:
    """What the plot shows, for those who do not see it."""
    scale = ", logarithmic" if plot.has_log_y else ""
    words = [f"{plot.title}: {plot.y_label}{scale}, by {plot.x_label}."]
    words += [plot.words] if plot.words else map(_ends, plot.curves)
    if plot.limit is not None:
        words.append(f"The objective is {plot.limit:.4g}.")
    return " ".join(words)


def _ends(curve: Curve) -> str:
    if not curve.xs:
        return f"{curve.label}: no points."
    first, last = (
        f"{curve.ys[0]:.4g} at {curve.xs[0]:.4g}",
        f"{curve.ys[-1]:.4g} at {curve.xs[-1]:.4g}",
    )
    return f"{curve.label}: {first}." if len(curve.xs) == 1 else f"{curve.label}: {first}, {last}."
