"""Which rows are run, and their results in the paper's order."""

import logging
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor, Future

from chameleon_lora.errors import ConfigError
from chameleon_lora.reproduce.finding import Effort, Finding, PaperRow
from chameleon_lora.reproduce.report import RowResult
from chameleon_lora.reproduce.rows import ROWS

Measure = Callable[[str, Effort], Finding]
_logger = logging.getLogger(__name__)


def choose_rows(rows: Sequence[PaperRow], keys: Sequence[str]) -> tuple[PaperRow, ...]:
    """Those named, in the order of `rows`; all of them if none is named.

    Raises:
        ConfigError: there is no row of a name.
    """
    known = [row.key for row in rows]
    for key in keys:
        if key not in known:
            raise ConfigError(f"there is no row {key!r}; rows: {', '.join(known)}")
    return tuple(row for row in rows if not keys or row.key in keys)


def measure_row(key: str, effort: Effort) -> Finding:
    """The finding of the paper's row of that name; worker processes are sent names, not functions."""
    (row,) = choose_rows(ROWS, [key])
    return row.measure(effort)


def run_rows(
    rows: Sequence[PaperRow], effort: Effort, executor: Executor, measure: Measure = measure_row
) -> Iterator[RowResult]:
    """Each row's result, in the order of `rows`, as soon as it and those before it are there.

    A row that ends with an error does not keep the others from running.
    """
    futures = [executor.submit(measure, row.key, effort) for row in rows]
    for row, future in zip(rows, futures, strict=True):
        yield _result(row, future)


def _result(row: PaperRow, future: Future[Finding]) -> RowResult:
    error = future.exception()
    if error is None:
        return RowResult(row, future.result())
    _logger.error("row %s ended with an error", row.key, exc_info=error)
    return RowResult(row, None, f"{type(error).__name__}: {error}")
