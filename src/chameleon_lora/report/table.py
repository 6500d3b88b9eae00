"""Tables: figures as people read them, and rows of them as Markdown and as lines of a terminal."""

import math
import re
import textwrap
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import zip_longest

from chameleon_lora.compare.printed import with_interval

BETTER, WORSE = "✓", "✗"
"""Signs at the begin of a cell: the interval lies on that side of 1."""
SIGN_CLASSES = {BETTER: "holds", WORSE: "fails", "≈": "partly", "!": "broken"}
"""How a page colours a cell that begins with such a sign and a space."""
MISSING = "–"
MILLISECONDS = 1000.0
NUMBERS, LONG_WORDS = "number", "long"
LONG_CELL = 40  # characters; such cells wrap, others keep their line

_NUMBER = re.compile(r"[-+−<>~≤≥±]?\s*\d")
_GAP = "  "
_MIN_COLUMN_WIDTH = 8


@dataclass(frozen=True, slots=True)
class Table:
    """Figures in rows; the first cell of a row says what the row is."""

    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


def column_kinds(table: Table) -> list[str]:
    """The kind of each column: NUMBERS are set to the right, LONG_WORDS may wrap; empty for other words."""
    cells = zip(*(row[1:] for row in table.rows), strict=True)
    return ["", *map(_kind, cells)] if table.rows else [""] * len(table.head)


def markdown_table(table: Table, kinds: Sequence[str]) -> str:
    """Columns of the kind NUMBERS are set to the right; no kinds, none is."""
    rule = ["---:" if kind == NUMBERS else "---" for kind in kinds or [""] * len(table.head)]
    return "\n".join(map(_markdown_row, (table.head, rule, *table.rows)))


def markdown_line(text: str) -> str:
    """In one line, and nothing in it taken for HTML."""
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())


def terminal_table(table: Table, width: int) -> list[str]:
    """Lines of at most `width` characters; long cells wrap inside their column."""
    widths = _column_widths([table.head, *table.rows], width)
    rule = _GAP.join("-" * column for column in widths)
    lines = [*_terminal_row(table.head, widths), rule]
    for row in table.rows:
        lines += _terminal_row(row, widths)
    return lines


def ms(value_s: float | None) -> str:
    """Seconds as milliseconds, three digits or more, without the unit."""
    return MISSING if value_s is None else plain(value_s * MILLISECONDS)


def percent(share: float | None) -> str:
    """A share from 0 to 1 as text with one decimal; MISSING for None."""
    return MISSING if share is None else f"{100.0 * share:.1f} %"


def plain(value: float | None) -> str:
    """Three digits or more, without exponent."""
    if value is None:
        return MISSING
    decimals = 0 if abs(value) >= 100.0 else 1 if abs(value) >= 10.0 else 2
    return f"{value:.{decimals}f}"


def interval(ratio: float | None, low: float | None, high: float | None) -> str:
    """A ratio with its interval, or that there is none; NaN is a ratio to nothing."""
    if ratio is None or math.isnan(ratio):
        return MISSING
    return with_interval(ratio, low, high)


def listed(words: Sequence[str]) -> str:
    """The words as one enumeration: `a, b and c`; empty for none."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def counted(count: int, noun: str) -> str:
    """A number and its noun, with an s unless it is one: `1 run`, `2 runs`."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"


def _kind(cells: Sequence[str]) -> str:
    told = [cell.lstrip(f"{BETTER}{WORSE} ") for cell in cells if cell != MISSING]
    if told and all(map(_NUMBER.match, told)):
        return NUMBERS
    return LONG_WORDS if any(len(cell) > LONG_CELL for cell in told) else ""


def _markdown_row(cells: Collection[str]) -> str:
    return "| " + " | ".join(markdown_line(cell).replace("|", "\\|") for cell in cells) + " |"


def _column_widths(rows: Sequence[tuple[str, ...]], width: int) -> list[int]:
    """As wide as the longest cell; while that is too much in all, the widest column gives way."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = width - len(_GAP) * (len(widths) - 1)
    while sum(widths) > room and max(widths) > _MIN_COLUMN_WIDTH:
        widths[widths.index(max(widths))] -= 1
    return widths


def _terminal_row(cells: tuple[str, ...], widths: Sequence[int]) -> list[str]:
    wrapped = [textwrap.wrap(cell, column) for cell, column in zip(cells, widths, strict=True)]
    return [
        _GAP.join(f"{part:<{column}}" for part, column in zip(parts, widths, strict=True)).rstrip()
        for parts in zip_longest(*wrapped, fillvalue="")
    ]
