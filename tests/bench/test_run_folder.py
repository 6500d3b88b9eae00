"""The folder of a run."""

import json
import re
from dataclasses import asdict
from pathlib import Path

import pytest

from chameleon_lora.bench.run_folder import (
    new_folder,
    read_config,
    read_records,
    read_samples,
    write_run,
)
from chameleon_lora.errors import BenchError
from chameleon_lora.metrics.sample import LaneSample, Sample
from chameleon_lora.metrics.summary import summarise
from tests.metrics.records import record

RECORDS = (record(0, 0.25, (1.0, 1.5)), record(1, 0.5, (), error="refused"))


def test_records_come_back_as_they_were_written(tmp_path: Path) -> None:
    """Two records, one of them failed, survive the file."""
    write_run(tmp_path / "run", {}, RECORDS, asdict(summarise(RECORDS)))
    assert read_records(tmp_path / "run") == RECORDS


def test_config_and_summary_are_json(tmp_path: Path) -> None:
    """What was asked and what came out, readable by any tool."""
    write_run(tmp_path, {"seed": 3}, RECORDS, asdict(summarise(RECORDS)))
    assert json.loads((tmp_path / "config.json").read_text("utf8")) == {"seed": 3}
    summary = json.loads((tmp_path / "summary.json").read_text("utf8"))
    assert (summary["completed"], summary["ttft"]["p50_s"]) == (1, 0.75)


def test_times_are_kept_to_the_microsecond(tmp_path: Path) -> None:
    """1.23456789 s is written as 1.234568."""
    records = (record(0, 0.0, (1.23456789,)),)
    write_run(tmp_path, {}, records, asdict(summarise(records)))
    assert read_records(tmp_path)[0].token_times_s == (1.234568,)


def test_a_broken_line_is_named(tmp_path: Path) -> None:
    """The error gives file and line number."""
    write_run(tmp_path, {}, RECORDS, asdict(summarise(RECORDS)))
    with (tmp_path / "records.jsonl").open("a") as file:
        file.write('{"index": 2}\n')
    with pytest.raises(BenchError, match=r"records\.jsonl:3 is not a request record"):
        read_records(tmp_path)


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("index", '"2"', "Expected `int`, got `str` - at `$.index`"),
        ("end_s", "null", "Expected `float`, got `null` - at `$.end_s`"),
        ("end_s", "NaN", "malformed"),
        ("arrival_s", "1e999", "out of range - at `$.arrival_s`"),
        ("token_times_s", "[true]", "Expected `float`, got `bool` - at `$.token_times_s[0]`"),
    ],
)
def test_a_field_of_another_kind_is_named(
    tmp_path: Path, field: str, value: str, said: str
) -> None:
    """Where what comes of it would be no number, or no time that a clock shows."""
    write_run(tmp_path, {}, RECORDS[:1], {})
    path = tmp_path / "records.jsonl"
    path.write_text(
        re.sub(rf'"{field}": [^[,]+|"{field}": \[.*?\]', f'"{field}": {value}', path.read_text())
    )
    with pytest.raises(BenchError, match=r"records\.jsonl:1 is not a request record") as caught:
        read_records(tmp_path)
    assert said in str(caught.value)


def test_each_new_folder_has_the_next_number(tmp_path: Path) -> None:
    """demo-1, then demo-2, both made."""
    made = [new_folder(tmp_path / "runs", "demo") for _ in range(2)]
    assert [folder.name for folder in made] == ["demo-1", "demo-2"]
    assert all(folder.is_dir() for folder in made)


LANES = (LaneSample(0, 2, 1, 3, 40, 50, "quota"), LaneSample(1, 0, 0, 1, 9, 50, None))
SAMPLES = (
    Sample(0.5, None, None, None),
    Sample(1.5, 4, 2, 0.25, LANES, {"host": 1024, "slot": 512}, 256),
)


def test_samples_come_back_as_they_were_written(tmp_path: Path) -> None:
    """One that tells nothing, and one that tells all, lanes included."""
    write_run(tmp_path, {}, RECORDS, {}, SAMPLES)
    assert read_samples(tmp_path) == SAMPLES


def test_a_server_that_tells_nothing_leaves_no_file_of_samples(tmp_path: Path) -> None:
    """And reading it gives none."""
    write_run(tmp_path, {}, RECORDS, {})
    assert not (tmp_path / "samples.jsonl").exists()
    assert read_samples(tmp_path) == ()


@pytest.mark.parametrize("line", ["{", "[]", "{}", '{"lanes": [{"lane": 1}]}', "null"])
def test_a_broken_sample_is_named(tmp_path: Path, line: str) -> None:
    """The error gives file and line number."""
    write_run(tmp_path, {}, RECORDS, {}, SAMPLES)
    with (tmp_path / "samples.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(BenchError, match=r"samples\.jsonl:3 is not a sample"):
        read_samples(tmp_path)


def test_a_config_comes_back(tmp_path: Path) -> None:
    """Whatever it holds."""
    config = {"label": "stock", "rate_per_s": 2.5, "adapters": [{"name": "a", "rank": None}]}
    write_run(tmp_path, config, RECORDS, {})
    assert read_config(tmp_path) == config


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (None, "cannot be read"),
        ("{", "cannot be read"),
        ("\udcff", "cannot be read"),
        ("[1]", "holds no JSON object"),
    ],
)
def test_what_is_no_config_is_named(tmp_path: Path, text: str | None, message: str) -> None:
    """Missing, cut off, no text, or another kind of JSON: the error gives the file."""
    if text is not None:
        (tmp_path / "config.json").write_text(text, "utf8", errors="surrogateescape")
    with pytest.raises(BenchError, match=rf"config\.json {message}"):
        read_config(tmp_path)
