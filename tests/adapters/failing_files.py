"""Files that cannot be opened for a while, or hang, as on a failing disk or that of a dead server."""

import os
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

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


class HungDisk(threading.Event):
    """Until this is set, each thread but the test's own that calls the system for certain paths waits.

    Attributes:
        asked: how often it was called for them.
    """

    def __init__(
        self, patch: pytest.MonkeyPatch, is_there: Callable[[Path], bool], call: str = "stat"
    ) -> None:
        super().__init__()
        self.is_there, self.asked = is_there, 0
        of_os = getattr(os, call)

        def late(path: Any, *args: Any, **given: Any) -> Any:
            is_other = threading.current_thread() is not threading.main_thread()
            if is_other and not isinstance(path, int) and self.is_there(Path(path)):
                self.asked += 1
                self.wait()
            return of_os(path, *args, **given)

        patch.setattr(os, call, late)
