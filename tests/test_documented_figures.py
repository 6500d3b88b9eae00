"""Figures of the documents against what makes them: commands that need no engine, and raw results."""

import json
import re
import shlex
import statistics
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
PAIRS = {
    "P50 time to first token": "ttft_p50_s",
    "P99 time to first token": "ttft_p99_s",
    "requests within 5x the unloaded time to first token": "slo_share",
    "throughput": "tokens_per_s",
    "P99 gap between tokens": "gap_p99_s",
    "one resident adapter, throughput": "one_adapter_tokens_per_s",
}
"""Rows of README's first table, and the figure of each in the raw results."""


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


def test_readmes_first_table_is_that_of_the_raw_results() -> None:
    """Medians of both arms, the median of the ratios, and the lowest and highest of them."""
    raw = json.loads((ROOT / "docs" / "results" / "2026-11-22-pairs.json").read_text("utf-8"))
    by_pair = {(run["arm"], run["pair"]): run for run in raw}
    lines = (ROOT / "README.md").read_text("utf-8").splitlines()
    shown = {row[0]: row[1:] for line in lines if line.startswith("| ") for row in (cells(line),)}
    for row, key in PAIRS.items():
        stock, ours = (
            [by_pair[arm, pair][key] for pair in range(3)] for arm in ("stock", "chameleon")
        )
        ratios = sorted(mine / theirs for mine, theirs in zip(ours, stock, strict=True))
        low, middle, high = (f"{ratio:.2f}" for ratio in ratios)
        *medians, ratio = shown[row]
        assert f"{middle} [{low}, {high}]" == ratio
        for text, values in zip(medians, (stock, ours), strict=True):
            number, unit = text.split()
            scale = {"ms": 1e3, "%": 1e2}.get(unit, 1.0)
            digits = len(number.partition(".")[2])
            assert number == f"{scale * statistics.median(values):.{digits}f}"


def test_readmes_second_table_is_that_of_the_comparison() -> None:
    """Each ratio of the arm `chameleon`, with its interval."""
    page = (ROOT / "docs" / "examples" / "comparison.md").read_text("utf-8")
    shown = (ROOT / "README.md").read_text("utf-8")
    head, *lines = (line for line in page.splitlines() if line.startswith("| "))
    column = cells(head).index("chameleon")
    ratios = {
        row[0]: row[column].strip("✓✗ ")
        for line in lines
        if len(row := cells(line)) == len(cells(head))
    }
    for load in (70, 90, 105, 200):
        (line,) = (line for line in shown.splitlines() if line.startswith(f"| {load} % |"))
        expected = [
            ratios[f"{what}, {load} %"]
            for what in (
                "P99 time to first token",
                "P50 time to first token",
                "P99 time between tokens",
            )
        ]
        assert expected == cells(line)[1:]
    (highest,) = (line for line in lines if line.startswith("| chameleon |") and "✓" in line)
    (line,) = (line for line in shown.splitlines() if line.startswith("| highest load that"))
    assert cells(highest)[2].strip("✓✗ ") == cells(line)[1]


@pytest.mark.long
@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.key)
def test_a_row_of_the_paper_comes_out_as_its_page_says(row: PaperRow) -> None:
    """`chameleon reproduce --quick`: what is compared, the paper's figure, ours and the verdict."""
    finding = row.measure(QUICK)
    expected = [f"`{row.key}`", row.claim, row.paper, finding.ours, finding.verdict.value]
    page = (ROOT / "docs" / "reproduction.md").read_text("utf-8")
    assert expected in [cells(line) for line in page.splitlines()]
