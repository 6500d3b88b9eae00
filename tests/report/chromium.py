"""A real browser, steered over its debugging pipe: keys, colour schemes, widths, the console."""

import json
import os
import select
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

NAMES = ("chromium", "chromium-browser", "google-chrome", "google-chrome-stable")
PATIENCE_S = 60.0
# The browser reads commands from descriptor 3 and writes answers to 4.
START = (
    "import os, sys; os.dup2(int(sys.argv[1]), 3); os.dup2(int(sys.argv[2]), 4); "
    "os.execv(sys.argv[3], sys.argv[3:])"
)
KEYS = {"Enter": (13, "\r"), " ": (32, " "), "Tab": (9, "")}


def chromium_path() -> str | None:
    """None where there is no browser."""
    return next(filter(None, map(shutil.which, NAMES)), None)


class Chromium:
    """One tab. `events` holds all that the browser told since the last `open_page`."""

    def __init__(self, commands: int, answers: int) -> None:
        """The ends of the two pipes that are ours."""
        self._commands, self._answers = commands, answers
        self._rest, self._number, self._session = b"", 0, ""
        self.events: list[dict[str, Any]] = []
        target = self.call("Target.createTarget", url="about:blank")["targetId"]
        found = self.call("Target.attachToTarget", targetId=target, flatten=True)
        self._session = found["sessionId"]
        for domain in ("Page", "Runtime", "Log", "Network"):
            self.call(f"{domain}.enable")

    def call(self, method: str, **params: Any) -> dict[str, Any]:
        """What the browser answers; an error fails the test."""
        self._number += 1
        message: dict[str, Any] = {"id": self._number, "method": method, "params": params}
        if self._session:
            message["sessionId"] = self._session
        os.write(self._commands, json.dumps(message).encode() + b"\0")
        while True:
            answer = self._next()
            if answer.get("id") == self._number:
                assert "error" not in answer, answer
                return dict(answer["result"])

    def open_page(self, page: Path) -> None:
        """Returns when the page has loaded."""
        self.events.clear()
        self.call("Page.navigate", url=page.as_uri())
        while "Page.loadEventFired" not in [event["method"] for event in self.events]:
            self._next()

    def value(self, expression: str) -> Any:
        """What JavaScript makes of it in the page."""
        found = self.call("Runtime.evaluate", expression=expression, returnByValue=True)
        assert "exceptionDetails" not in found, found
        return found["result"].get("value")

    def press(self, key: str) -> None:
        """A key as from a keyboard, to whatever has the focus."""
        code, text = KEYS[key]
        shared = {"key": key, "code": key, "windowsVirtualKeyCode": code}
        self.call("Input.dispatchKeyEvent", type="keyDown", text=text, **shared)
        self.call("Input.dispatchKeyEvent", type="keyUp", **shared)

    def told(self, method: str) -> list[dict[str, Any]]:
        """Events of one kind since the page was opened."""
        return [event["params"] for event in self.events if event["method"] == method]

    def _next(self) -> dict[str, Any]:
        while b"\0" not in self._rest:
            ready, _, _ = select.select([self._answers], [], [], PATIENCE_S)
            assert ready, f"the browser said nothing for {PATIENCE_S:.0f} s"
            read = os.read(self._answers, 1 << 16)
            assert read, "the browser has ended"
            self._rest += read
        line, _, self._rest = self._rest.partition(b"\0")
        message: dict[str, Any] = json.loads(line)
        if "method" in message:
            self.events.append(message)
        return message


@contextmanager
def running_chromium(path: str, home: Path) -> Iterator[Chromium]:
    """Ends the browser afterwards."""
    from_us, commands = os.pipe()
    answers, to_us = os.pipe()
    flags = (
        *("--headless", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage"),
        *("--remote-debugging-pipe", f"--user-data-dir={home}", "--hide-scrollbars"),
        "--host-resolver-rules=MAP * ~NOTFOUND",
    )
    process = subprocess.Popen(
        [sys.executable, "-c", START, str(from_us), str(to_us), path, *flags],
        pass_fds=(from_us, to_us),
        stderr=subprocess.DEVNULL,
    )
    os.close(from_us)
    os.close(to_us)
    try:
        yield Chromium(commands, answers)
    finally:
        process.terminate()
        process.wait(timeout=PATIENCE_S)
        os.close(commands)
        os.close(answers)
