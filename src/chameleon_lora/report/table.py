"""Figures as shown to people."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Table:
    """Figures in rows; the first cell of a row says what the row is."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]
