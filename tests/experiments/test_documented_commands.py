"""The commands of the documents that run experiments."""

import importlib.util
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*ROOT.glob("*.md"), *ROOT.glob("docs/**/*.md")]
COMMAND = re.compile(r"python (?:-m )?(experiments[./][\w./]+)")


def test_experiments_are_run_as_modules_that_exist() -> None:
    """By its path a script finds its own folder first, and not what `experiments` and `faults` hold."""
    named = {name for page in PAGES for name in COMMAND.findall(page.read_text(encoding="utf-8"))}
    assert named
    assert [] == sorted(name for name in named if "/" in name or not importlib.util.find_spec(name))
