"""Rows of faults as a table in Markdown."""

from collections.abc import Iterable

from faults.trial import FaultRow

_HEAD = "| fault | in flight | requests | lost | wrong | disturbed | recovery, s | server after it | said |"
_RULE = "| --- | ---: | ---: | ---: | ---: | ---: | ---: | --- | --- |"
_SAID_CHARACTERS = 90


def table(rows: Iterable[FaultRow]) -> str:
    """One line a fault."""
    return "\n".join([_HEAD, _RULE, *map(line, rows)])


def line(row: FaultRow) -> str:
    """One row of it."""
    recovery = "never" if row.recovery_s is None else f"{row.recovery_s:.1f}"
    cells = (row.fault, row.in_flight, row.requests, row.lost, row.wrong, row.disturbed, recovery)
    said = row.said.replace("|", "/").replace("\n", " ")[:_SAID_CHARACTERS]
    return f"| {' | '.join(map(str, cells))} | {_after(row)} | {said} |"


def _after(row: FaultRow) -> str:
    if row.exit_status is not None:
        return f"exit status {row.exit_status}"
    return "up" if row.is_clean else "**not well**"
