"""Files that cannot be opened for a while, as on a failing disk or where descriptors are used up."""

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_FAILING: dict[str, int] = {}
_HOOKS: list[object] = []  # an audit hook lasts as long as the process


@contextmanager
def failing(path: Path, error_number: int) -> Iterator[None]:
    """While the block runs, whoever opens the file gets this error from the system."""
    if not _HOOKS:
        _HOOKS.append(_fail)
        sys.addaudithook(_fail)
    _FAILING[str(path)] = error_number
    try:
        yield
    finally:
        del _FAILING[str(path)]


def _fail(event: str, args: tuple[object, ...]) -> None:
    if event == "open" and (number := _FAILING.get(str(args[0]))) is not None:
        raise OSError(number, os.strerror(number))
