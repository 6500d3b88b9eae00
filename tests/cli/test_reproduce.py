"""`chameleon reproduce`: what it prints, writes and returns."""

import os
import signal
import sys
from concurrent.futures import ThreadPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from hashlib import sha256
from pathlib import Path

import pytest

from chameleon_lora.cli.main import main
from chameleon_lora.cli.reproduce import finish, listing, make_folder, run_report, workers
from chameleon_lora.errors import ConfigError
from chameleon_lora.reproduce.finding import PaperRow
from chameleon_lora.reproduce.report import Report
from chameleon_lora.reproduce.rows import ROWS as PAPER_ROWS
from tests.reproduce.sample import BROKEN, EFFORT, ROWS, measure_sample


@pytest.fixture(autouse=True)
def _no_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    """Lines are 100 characters wide, whoever runs the tests where."""
    monkeypatch.setenv("COLUMNS", "100")


def run_sample(rows: tuple[PaperRow, ...]) -> Report:
    """The sample's rows, in threads."""
    with ThreadPoolExecutor(2) as executor:
        return run_report(rows, EFFORT, "chameleon reproduce --quick", executor, measure_sample)


def test_rows_are_told_as_they_end_and_then_as_a_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Progress on stderr in the paper's order, the table on stdout, and where the page is."""
    assert 0 == finish(run_sample(ROWS), tmp_path)
    printed = capsys.readouterr()
    assert [row.key for row in ROWS] == [line.split()[0] for line in printed.err.splitlines()]
    assert printed.out.startswith("row  ")
    assert (
        "holds: 1, partly: 1, fails: 1; runs of 240 s of simulated traffic, seed 1" in printed.out
    )
    assert f"page: {tmp_path / 'index.html'}" in printed.out
    assert (tmp_path / "index.html").is_file()


def test_a_claim_that_fails_is_no_error_but_a_row_that_breaks_is(tmp_path: Path) -> None:
    """The exit code is 0 for the one and 1 for the other; the files are written all the same."""
    assert 0 == finish(run_sample(ROWS[2:]), make_folder(tmp_path / "fails"))
    assert 1 == finish(run_sample((ROWS[0], BROKEN)), make_folder(tmp_path / "breaks"))
    assert "did not run" in (tmp_path / "breaks" / "summary.json").read_text("utf-8")


def test_a_page_that_cannot_be_written_costs_no_figures(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The table is printed all the same, and the last line says what is in the way."""
    (tmp_path / "index.html").mkdir()
    assert 1 == finish(run_sample(ROWS), tmp_path)
    printed = capsys.readouterr()
    assert "holds: 1, partly: 1, fails: 1" in printed.out
    assert "index.html cannot be written" in printed.err.splitlines()[-1]


def test_without_matplotlib_all_but_plots_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """And the last line says how to install it."""
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    assert 0 == finish(run_sample(ROWS), tmp_path)
    assert capsys.readouterr().out.endswith(": pip install 'chameleon-lora[report]'\n")
    names = sorted(path.name for path in tmp_path.iterdir())
    assert ["index.html", "summary.json", "table.md"] == names


@pytest.mark.slow
def test_the_same_rows_give_the_same_files(tmp_path: Path) -> None:
    """Every byte of summary, table, page and plots."""
    files: list[dict[Path, str]] = []
    for name in ("one", "two"):
        folder = make_folder(tmp_path / name)
        finish(run_sample(ROWS), folder)
        paths = [path for path in folder.rglob("*") if path.is_file()]
        digests = [sha256(path.read_bytes()).hexdigest() for path in paths]
        files.append({p.relative_to(folder): d for p, d in zip(paths, digests, strict=True)})
    assert files[0] == files[1]
    assert 9 == len(files[0])


def test_the_list_names_every_row(capsys: pytest.CaptureFixture[str]) -> None:
    """A line each, and nothing runs."""
    assert 0 == main(["reproduce", "--list"])
    keys = [line.split()[0] for line in capsys.readouterr().out.splitlines() if line]
    assert [row.key for row in PAPER_ROWS] == keys
    assert "ttft-p99    P99 TTFT vs S-LoRA at 6 / 8 / 9 RPS" == listing(ROWS).splitlines()[0]


def test_an_unknown_row_ends_with_two(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line on stderr, and no folder is left behind."""
    assert 2 == main(["reproduce", "no-such-row", "--out", str(tmp_path / "out")])
    error = capsys.readouterr().err
    assert error.startswith("chameleon reproduce: there is no row 'no-such-row'; rows: ")
    assert not (tmp_path / "out").exists()


def test_a_folder_that_holds_something_ends_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing is overwritten, and nothing runs."""
    (tmp_path / "kept.txt").write_text("kept")
    assert 2 == main(["reproduce", PAPER_ROWS[0].key, "--quick", "--out", str(tmp_path)])
    assert f"{tmp_path} is not empty and is not overwritten" in capsys.readouterr().err
    assert ["kept.txt"] == [path.name for path in tmp_path.iterdir()]


def test_a_file_is_no_folder(tmp_path: Path) -> None:
    """The message names it."""
    file = tmp_path / "file"
    file.write_text("")
    with pytest.raises(ConfigError, match="file cannot be a folder"):
        make_folder(file)


def test_an_empty_folder_is_taken_and_without_one_a_new_one_is_made(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The new one is the first of runs/reproduce-1, runs/reproduce-2, ... that is not there."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty").mkdir()
    assert tmp_path / "empty" == make_folder(tmp_path / "empty")
    assert Path("runs/reproduce-1") == make_folder(None)
    assert Path("runs/reproduce-2") == make_folder(None)


def test_an_interrupt_ends_the_workers_at_once() -> None:
    """Ctrl-C reaches every process of the terminal; none goes on with the next row."""
    with workers(1) as executor:
        worker = executor.submit(os.getpid).result()
        waiting = executor.submit(signal.pause)
        os.kill(worker, signal.SIGINT)
        done, _ = wait([waiting], timeout=30.0)
        if not done:
            os.kill(worker, signal.SIGKILL)  # or leaving the block would wait for it
    assert done
    assert isinstance(waiting.exception(), BrokenProcessPool)


def test_jobs_are_one_or_more(capsys: pytest.CaptureFixture[str]) -> None:
    """The parser says so."""
    with pytest.raises(SystemExit) as caught:
        main(["reproduce", "--jobs", "0"])
    assert 2 == caught.value.code
    assert "whole number of 1 or more" in capsys.readouterr().err
