"""A part of a report, before it becomes HTML or Markdown."""

from dataclasses import dataclass

from chameleon_lora.report.plot import Plot
from chameleon_lora.report.table import Table

BETTER, WORSE = "✓", "✗"
"""Signs at the begin of a cell: the interval lies on that side of 1."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table with its title.

    Attributes:
        is_folded: shown on demand, because it is long.
        sorted_by: the column by which rows come, highest first, where a reader may want another
            order; None where the order is part of what is said.
    """

    title: str
    table: Table
    is_folded: bool = False
    sorted_by: int | None = None


@dataclass(frozen=True, slots=True)
class Section:
    """Attributes:
    key: its name in links and in the names of its plots.
    notes: sentences above plots and tables; backticks set code.
    """

    key: str
    title: str
    notes: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    sheets: tuple[Sheet, ...] = ()
