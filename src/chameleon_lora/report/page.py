"""A page before it becomes HTML or Markdown."""

from dataclasses import dataclass

from chameleon_lora.report.plot import Plot
from chameleon_lora.report.table import Table

Facts = tuple[tuple[str, str], ...]
"""Words and what they stand for; backticks set code."""


@dataclass(frozen=True, slots=True)
class Sheet:
    """A table with its title.

    Attributes:
        is_folded: shown on demand, because it is long.
        sorted_by: the column by which rows come, highest first, where a reader may want another
            order; None where the order is part of what is said.
        targets: keys of the sections that its rows lead to; empty where they lead nowhere.
    """

    title: str
    table: Table
    is_folded: bool = False
    sorted_by: int | None = None
    targets: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Section:
    """One part of a page.

    Attributes:
        key: its name in links and in the names of its plots.
        notes: sentences above plots and tables; backticks set code.
        command: makes this section again; None where only the page's own does.
    """

    key: str
    title: str
    notes: tuple[str, ...] = ()
    plots: tuple[Plot, ...] = ()
    sheets: tuple[Sheet, ...] = ()
    facts: Facts = ()
    command: str | None = None


@dataclass(frozen=True, slots=True)
class Page:
    """All that a page says.

    Attributes:
        lead: a sentence below the title; may be empty.
        facts: what was compared and how.
        warnings: what makes the figures doubtful.
        command: makes this page again.
    """

    title: str
    lead: str
    facts: Facts
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    command: str

    @property
    def index(self) -> Section | None:
        """The section whose rows lead to the others; None if the page needs a list of links."""
        return next((s for s in self.sections if any(sheet.targets for sheet in s.sheets)), None)
