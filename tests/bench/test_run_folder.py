"""The folder of a run."""

import json
from pathlib import Path

import pytest
from tests.metrics.records import record

from chameleon_lora.bench.run_folder import new_folder, read_records, write_run
from chameleon_lora.errors import BenchError
from chameleon_lora.metrics.summary import summarise

RECORDS = (record(0, 0.25, (1.0, 1.5)), record(1, 0.5, (), error="refused"))


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Two records, one of them failed, survive the file."""
    write_run(tmp_path / "run", {}, RECORDS, summarise(RECORDS))
    assert read_records(tmp_path / "run") == RECORDS


def test_config_and_summary_are_json(tmp_path: Path) -> None:
    """What was asked and what came out, readable by any tool."""
    write_run(tmp_path, {"seed": 3}, RECORDS, summarise(RECORDS))
    assert json.loads((tmp_path / "config.json").read_text("utf8")) == {"seed": 3}
    summary = json.loads((tmp_path / "summary.json").read_text("utf8"))
    assert (summary["completed"], summary["ttft"]["p50_s"]) == (1, 0.75)


def test_times_are_kept_to_the_microsecond(tmp_path: Path) -> None:
    """1.23456789 s is written as 1.234568."""
    records = (record(0, 0.0, (1.23456789,)),)
    write_run(tmp_path, {}, records, summarise(records))
    assert read_records(tmp_path)[0].token_times_s == (1.234568,)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    """The error gives file and line number."""
    write_run(tmp_path, {}, RECORDS, summarise(RECORDS))
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"index": 2}\n')
    with pytest.raises(BenchError, match=r"records\.jsonl:3 is not a request record"):
        read_records(tmp_path)


def test_each_new_folder_has_the_next_number(tmp_path: Path) -> None:
    """demo-1, then demo-2, both made."""
    made = [new_folder(tmp_path / "runs", "demo") for _ in range(2)]
    assert [folder.name for folder in made] == ["demo-1", "demo-2"]
    assert all(folder.is_dir() for folder in made)
