"""What this process does with files, noted and interfered with."""

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any


class Watch:
    """What this process opens, and what is done when a file is about to be opened or copied."""

    def __init__(self) -> None:
        self.is_on = False
        self.opened: list[str] = []
        self.unpickled: list[str] = []
        self.due: dict[str, Callable[[], object]] = {}
        sys.addaudithook(self._note)

    def do_at_copy(self, change: Callable[[], object]) -> None:
        """Once, when the next weights are about to be copied."""
        self.due["os.truncate"] = change

    def do_at_open(self, name: str, change: Callable[[], object]) -> None:
        """Once, when the next file of that name is about to be opened."""
        self.due[f"open {name}"] = change

    def _note(self, event: str, args: tuple[Any, ...]) -> None:
        if not self.is_on:
            return
        if event == "open":
            self.opened.append(str(args[0]))
            event = f"open {Path(self.opened[-1]).name}"
        elif event == "pickle.find_class":
            self.unpickled.append(str(args))
        self.due.pop(event, lambda: None)()
