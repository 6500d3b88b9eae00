"""How far a run is, told while it goes on."""

from collections.abc import Callable
from typing import TextIO

from chameleon_lora.bench.replay import Progress

TERMINAL_EVERY_S, FILE_EVERY_S = 0.5, 5.0
_CLEARED_LINE = "\r\x1b[2K"


class LiveLine:
    """One line that is kept up to date on a terminal; elsewhere a line whenever something is told.

    Lives as long as the command. Between calls the terminal's cursor is at the end of the line.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self.every_s = TERMINAL_EVERY_S if self._is_terminal else FILE_EVERY_S

    def progress(self, name: str) -> Callable[[Progress], None]:
        """What a replay called `name` reports to."""
        return lambda at: self._update(f"{name}: {progress_words(at)}")

    def say(self, line: str) -> None:
        """A line that stays."""
        self.clear()
        print(line, file=self._stream, flush=True)

    def clear(self) -> None:
        """The line is empty."""
        if self._is_terminal:
            print(_CLEARED_LINE, end="", file=self._stream, flush=True)

    def _update(self, line: str) -> None:
        if self._is_terminal:
            print(_CLEARED_LINE + line, end="", file=self._stream, flush=True)
        else:
            print(line, file=self._stream, flush=True)


def progress_words(at: Progress) -> str:
    """Time, requests sent, under way, completed and failed."""
    failed = f", {at.failed} failed" if at.failed else ""
    return (
        f"{at.now_s:.0f} s, {at.sent} of {at.total} sent, "
        f"{at.sent - at.completed - at.failed} open, {at.completed} completed{failed}"
    )
