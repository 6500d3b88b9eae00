"""A drawn plot, and who draws."""

import importlib
import importlib.util
from collections.abc import Callable
from dataclasses import dataclass
from typing import cast

from chameleon_lora.report.plot import Plot

INK, BACKGROUND = "#1f2328", "#ffffff"
HOW_TO_INSTALL = "pip install 'chameleon-lora[report]'"


@dataclass(frozen=True, slots=True)
class Drawing:
    """One plot in both formats.

    Attributes:
        svg: text in INK on BACKGROUND, which a page may replace by its own colours.
    """

    png: bytes
    svg: str


Draw = Callable[[Plot], Drawing]


def try_drawing() -> Draw | None:
    """What draws plots; None where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    plots = importlib.import_module("chameleon_lora.report.plots")
    return cast(Draw, plots.draw)  # the module is imported by name, so its types are unknown
