"""`chameleon report`: files and exit codes."""

from pathlib import Path

import pytest

from chameleon_lora.cli.main import main
from tests.report.sample import write


@pytest.fixture(autouse=True)
def without_matplotlib(monkeypatch: pytest.MonkeyPatch) -> None:
    """Plots take seconds and have their own tests."""
    monkeypatch.setattr("importlib.util.find_spec", lambda _name: None)


def test_a_page_is_written_and_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """And what was left out of it, for want of matplotlib."""
    out = tmp_path / "page.html"
    assert 0 == main(["report", str(write(tmp_path / "run")), "--out", str(out)])
    said = capsys.readouterr()
    assert f"page: {out}" in said.out
    assert "pip install 'chameleon-lora[report]'" in said.out
    assert "" == said.err
    assert f"chameleon report {tmp_path / 'run'} --out {out}" in out.read_text("utf-8")


def test_without_out_a_new_folder_is_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """runs/report-1, then runs/report-2; the table is there if asked for."""
    monkeypatch.chdir(tmp_path)
    write(tmp_path / "run")
    assert [0, 0] == [main(["report", "run", "--markdown"]) for _ in range(2)]
    for name in ("report-1", "report-2"):
        files = sorted(path.name for path in (tmp_path / "runs" / name).iterdir())
        assert ["index.html", "report.md"] == files


def test_a_broken_run_among_good_ones_ends_with_one(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The page is written all the same, and names it."""
    write(tmp_path / "good")
    (write(tmp_path / "broken") / "records.jsonl").write_text("{")
    assert 1 == main(["report", str(tmp_path), "--out", str(tmp_path / "out")])
    assert "Left out:" in capsys.readouterr().err
    assert "broken/records.jsonl:1" in (tmp_path / "out" / "index.html").read_text("utf-8")


def test_nothing_to_report_ends_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the path; no folder is made."""
    (write(tmp_path / "broken") / "records.jsonl").unlink()
    for name, said in (("none", "is no folder"), ("broken", "no run can be read")):
        path = tmp_path / name
        assert 2 == main(["report", str(path), "--out", str(tmp_path / "out")])
        text = capsys.readouterr().err
        assert said in text
        assert str(path) in text
    assert not (tmp_path / "out").exists()


def test_no_run_at_all_ends_with_two() -> None:
    """As any command asked for wrongly."""
    with pytest.raises(SystemExit) as caught:
        main(["report"])
    assert 2 == caught.value.code


def test_a_place_that_cannot_be_written_ends_with_two(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file stands where the folder should be."""
    run = write(tmp_path / "run")
    (tmp_path / "taken").write_text("x")
    assert 2 == main(["report", str(run), "--out", str(tmp_path / "taken")])
    assert "name another --out" in capsys.readouterr().err
    assert "x" == (tmp_path / "taken").read_text()
