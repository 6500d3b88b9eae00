"""The rows of the paper's evaluation: what they find, which are run, in which order they come back, and what an error of one does to the others."""

import multiprocessing
from concurrent.futures import ProcessPoolExecutor, ThreadPoolExecutor
from pathlib import Path

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.reproduce.finding import Effort, PaperRow, Verdict
from chameleon_lora.reproduce.report import RowResult
from chameleon_lora.reproduce.rows import ROWS as PAPER_ROWS
from chameleon_lora.reproduce.rows import choose_rows, run_rows
from tests.reproduce.sample import BROKEN, EFFORT, ROWS, measure_sample

BRIEF = Effort(90.0, (1,))
BY_KEY = {row.key: row for row in PAPER_ROWS}
ROOT = Path(__file__).resolve().parents[2]


def test_rows_come_in_the_papers_order_and_once() -> None:
    """However they are named, and however often."""
    assert ROWS == choose_rows(ROWS, [])
    assert (ROWS[0], ROWS[2]) == choose_rows(ROWS, ["eviction", "ttft-p99", "eviction"])


def test_an_unknown_row_is_refused_with_the_known_ones() -> None:
    """The message names what was asked for and what there is."""
    with pytest.raises(ConfigError) as caught:
        choose_rows(ROWS, ["ttft-p99", "tbt"])
    assert "there is no row 'tbt'; rows: ttft-p99, throughput, eviction" == str(caught.value)


def test_the_papers_rows_have_names_of_their_own() -> None:
    """A key names one row, one file and one anchor of the page."""
    keys = [row.key for row in PAPER_ROWS]
    assert len(set(keys)) == len(keys)
    assert [] == [key for key in keys if not key.replace("-", "").isalnum() or not key.isascii()]


def test_an_error_of_one_row_leaves_the_others(caplog: pytest.LogCaptureFixture) -> None:
    """Its result says which error it was; the log has where."""
    rows = (ROWS[2], BROKEN, ROWS[1])
    with ThreadPoolExecutor(2) as executor:
        results = list(run_rows(rows, EFFORT, executor, measure_sample))
    assert list(rows) == [result.row for result in results]
    broken = RowResult(BROKEN, None, "ValueError: no capacity at 0 requests/s")
    assert broken == results[1]
    assert [True, False, True] == [result.finding is not None for result in results]
    assert "in measure_broken" in caplog.text


@pytest.mark.slow
def test_worker_processes_give_what_this_one_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    """A row is sent by name, measured elsewhere, and comes back equal, errors included."""
    monkeypatch.syspath_prepend(ROOT)  # where the workers find the rows of this test
    rows = (*ROWS, BROKEN)
    with ThreadPoolExecutor(1) as executor:
        here = list(run_rows(rows, EFFORT, executor, measure_sample))
    context = multiprocessing.get_context("forkserver")
    with ProcessPoolExecutor(2, context) as executor:
        there = list(run_rows(rows, EFFORT, executor, measure_sample))
    assert here == there


def test_each_row_has_a_key_of_its_own_and_says_what_the_paper_says() -> None:
    """Keys are unique, and no row is without claim or figure."""
    assert len(PAPER_ROWS) == len(BY_KEY)
    assert [] == [row.key for row in PAPER_ROWS if not (row.claim and row.paper)]


@pytest.mark.slow
@pytest.mark.parametrize("row", PAPER_ROWS[3:6], ids=lambda row: row.key)
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
