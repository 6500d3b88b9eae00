"""Results as lines of a terminal."""

import textwrap
from collections.abc import Sequence
from itertools import zip_longest

from chameleon_lora.reproduce.report import RowResult

_GAP = "  "
_MIN_COLUMN_WIDTH = 8
_WORD_WIDTH = 11


def result_lines(result: RowResult, key_width: int, width: int) -> list[str]:
    """One result: key, verdict, both figures; wrapped below the figures where it is too long."""
    start = f"{result.row.key:<{key_width}}{_GAP}{result.word:<{_WORD_WIDTH}}{_GAP}"
    text = f"paper: {result.row.paper}; here: {result.ours}"
    if result.finding is None:
        text += f" ({result.error})"
    wrapped = textwrap.wrap(text, max(_MIN_COLUMN_WIDTH, width - len(start)))
    return [
        (start if number == 0 else " " * len(start)) + line for number, line in enumerate(wrapped)
    ]


def table_lines(results: Sequence[RowResult], width: int) -> list[str]:
    """All results as a table of at most `width` characters; long cells wrap inside their column."""
    head = ("row", "what is compared", "paper", "here", "verdict")
    cells = [
        (result.row.key, result.row.claim, result.row.paper, result.ours, result.word)
        for result in results
    ]
    widths = _column_widths([head, *cells], width)
    rule = _GAP.join("-" * column for column in widths)
    lines = [*_row_lines(head, widths), rule]
    for row in cells:
        lines += _row_lines(row, widths)
    return lines


def _column_widths(rows: Sequence[tuple[str, ...]], width: int) -> list[int]:
    """As wide as the longest cell; while that is too much in all, the widest column gives way."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    room = width - len(_GAP) * (len(widths) - 1)
    while sum(widths) > room and max(widths) > _MIN_COLUMN_WIDTH:
        widths[widths.index(max(widths))] -= 1
    return widths


def _row_lines(cells: tuple[str, ...], widths: Sequence[int]) -> list[str]:
    wrapped = [textwrap.wrap(cell, column) for cell, column in zip(cells, widths, strict=True)]
    return [
        _GAP.join(f"{part:<{column}}" for part, column in zip(parts, widths, strict=True)).rstrip()
        for parts in zip_longest(*wrapped, fillvalue="")
    ]
