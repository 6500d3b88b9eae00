"""The rows of the paper's evaluation."""

import pytest

from chameleon_lora.reproduce.finding import Effort, PaperRow, Verdict
from chameleon_lora.reproduce.rows import ROWS

BRIEF = Effort(90.0, (1,))
BY_KEY = {row.key: row for row in ROWS}


def test_each_row_has_a_key_of_its_own_and_says_what_the_paper_says() -> None:
    """Keys are unique, and no row is without claim or figure."""
    assert len(ROWS) == len(BY_KEY)
    assert [] == [row.key for row in ROWS if not (row.claim and row.paper)]


@pytest.mark.slow
@pytest.mark.parametrize("row", ROWS[3:6], ids=lambda row: row.key)
def test_a_row_finds_something_and_shows_its_figures(row: PaperRow) -> None:
    """It runs, and each of its tables has a cell under every heading."""
    finding = row.measure(BRIEF)
    assert finding.ours
    assert finding.tables
    for table in finding.tables:
        assert {len(table.head)} == {len(cells) for cells in table.rows}


@pytest.mark.slow
def test_a_row_measured_again_finds_the_same() -> None:
    """The same effort, the same finding, to the last digit."""
    measure = BY_KEY["critical-path"].measure
    assert measure(BRIEF) == measure(BRIEF)


@pytest.mark.slow
def test_beyond_slora_s_capacity_chameleon_answers_first_tokens_sooner() -> None:
    """The row that the paper is known for comes out as the paper has it, or better."""
    assert BY_KEY["p99-ttft"].measure(Effort(150.0, (1,))).verdict is Verdict.HOLDS
