"""Figures of the documents against what makes them: commands that need no engine, and raw results."""

import re
import shlex
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.cli.main import main
from chameleon_lora.cli.reproduce import QUICK
from chameleon_lora.reproduce.finding import PaperRow
from chameleon_lora.reproduce.rows import ROWS

ROOT = Path(__file__).resolve().parents[1]
PAGES = (ROOT / "README.md", *sorted(ROOT.glob("docs/*.md")))
REPEATABLE = ("plan", "workload")  # the same figures on any machine, within seconds
PRINTED = re.compile(r"^```\w*\n\$ chameleon ([^\n]+)\n(.+?)^```", re.MULTILINE | re.DOTALL)
COMPARED = {"ranks 4 to 16": "comparison.md", "ranks 8 to 64": "ranks-8-to-64.md"}
"""What README's table calls a comparison, and the page of it in docs/examples."""
FIGURES = ("P99 time to first token", "P50 time to first token", "P99 time between tokens")


def blocks() -> list[Any]:
    """Each repeatable command that stands in a page above what it prints."""
    return [
        pytest.param(words, shown, id=f"{page.name}-{words[0]}", marks=_marks(words[0]))
        for page in PAGES
        for command, shown in PRINTED.findall(page.read_text("utf-8"))
        if (words := shlex.split(command))[0] in REPEATABLE and not shown.startswith("$")
    ]


def _marks(command: str) -> list[pytest.MarkDecorator]:
    return [pytest.mark.long] if command == "plan" else []  # 10 s of a core


@pytest.mark.parametrize(("words", "shown"), blocks())
def test_a_page_shows_what_the_command_prints(
    words: list[str],
    shown: str,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Each line, in order; a page may leave some out."""
    monkeypatch.chdir(ROOT)
    assert 0 == main(words)
    printed = iter(capsys.readouterr().out.splitlines())
    assert [] == [line for line in shown.splitlines() if line not in printed]


def test_there_are_commands_to_run_again() -> None:
    """One of each kind at least: the pages are read as they are written."""
    assert set(REPEATABLE) == {block.values[0][0] for block in blocks()}


def cells(line: str) -> list[str]:
    """Of a row of a table, without emphasis."""
    return [cell.strip().replace("**", "") for cell in line.strip("|").split("|")]


@pytest.mark.parametrize("ranks", COMPARED)
def test_readmes_table_is_that_of_the_comparisons(ranks: str) -> None:
    """Each ratio of the arm `chameleon`, with its interval, at each load that README names."""
    page = (ROOT / "docs" / "examples" / COMPARED[ranks]).read_text("utf-8")
    shown = (ROOT / "README.md").read_text("utf-8")
    head, *lines = (line for line in page.splitlines() if line.startswith("| "))
    column = cells(head).index("chameleon")
    ratios = {
        row[0]: row[column].strip("✓✗ ")
        for line in lines
        if len(row := cells(line)) == len(cells(head))
    }
    rows = [cells(line) for line in shown.splitlines() if line.startswith(f"| {ranks}, ")]
    assert len(rows) > 1
    for label, *found in rows:
        load = label.removeprefix(f"{ranks}, ")
        assert [ratios[f"{what}, {load}"] for what in FIGURES] == found


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_a_row_of_the_paper_comes_out_as_its_page_says(row: PaperRow) -> None:
    """`chameleon reproduce --quick`: what is compared, the paper's figure, ours and the verdict."""
    finding = row.measure(QUICK)
    expected = [f"`{row.key}`", row.claim, row.paper, finding.ours, finding.verdict.value]
    page = (ROOT / "docs" / "reproduction.md").read_text("utf-8")
    assert expected in [cells(line) for line in page.splitlines()]
