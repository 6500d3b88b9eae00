"""How a table's columns are set."""

from collections.abc import Sequence

from chameleon_lora.report.markup import NUMBER
from chameleon_lora.report.section import BETTER, WORSE
from chameleon_lora.report.table import Table
from chameleon_lora.report.units import MISSING

NUMBERS, LONG_WORDS = "number", "long"
SIGNS = f"{BETTER}{WORSE} "
LONG_CELL = 40  # characters; such cells wrap, others keep their line


def column_kinds(table: Table) -> list[str]:
    """Of each column: NUMBERS are set to the right, LONG_WORDS may wrap; empty for other words."""
    cells = zip(*(row[1:] for row in table.rows), strict=True)
    return ["", *map(_kind, cells)] if table.rows else [""] * len(table.head)


def _kind(cells: Sequence[str]) -> str:
    told = [cell.lstrip(SIGNS) for cell in cells if cell != MISSING]
    if told and all(map(NUMBER.match, told)):
        return NUMBERS
    return LONG_WORDS if any(len(cell) > LONG_CELL for cell in told) else ""
