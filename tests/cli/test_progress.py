"""How far a run is, on a terminal and in a file."""

import io
import os

from chameleon_lora.bench.replay import Progress
from chameleon_lora.cli.bench import LiveLine, progress_words

AT = Progress(now_s=7.4, total=20, sent=10, completed=6, failed=1)


def test_progress_in_words() -> None:
    """Ten sent, six completed, one failed: three are under way; nothing is said of no failures."""
    assert "7 s, 10 of 20 sent, 3 open, 6 completed, 1 failed" == progress_words(AT)
    assert progress_words(Progress(0.0, 1, 0, 0, 0)).endswith("0 completed")


def test_a_file_gets_a_line_each_time() -> None:
    """And no sign that steers a terminal; every five seconds."""
    file = io.StringIO()
    live = LiveLine(file)
    tell = live.progress("x")
    tell(AT)
    tell(AT)
    live.clear()
    live.say("done")
    lines = file.getvalue().splitlines()
    assert ["x: " + progress_words(AT)] * 2 + ["done"] == lines
    assert 5.0 == live.every_s


def test_a_terminal_keeps_one_line() -> None:
    """Each report takes the place of the one before; what stays begins on an empty line."""
    reader, writer = os.openpty()
    with os.fdopen(writer, "w") as terminal:
        live = LiveLine(terminal)
        live.progress("x")(AT)
        live.say("done")
        shown = ""
        while not shown.endswith("\n"):  # a terminal may hand on what it got in pieces
            shown += os.read(reader, 4096).decode()
    os.close(reader)
    cleared = "\r\x1b[2K"
    assert cleared + "x: " + progress_words(AT) + cleared + "done\r\n" == shown
    assert 0.5 == live.every_s
