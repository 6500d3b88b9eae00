"""Traces in JSON, and files that are no trace."""

import gzip
import json
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.trace import TraceRow, read_trace, recorded_rate_per_s

MOONCAKE = {"timestamp": 27_482, "input_length": 6_955, "output_length": 52, "hash_ids": [46, 47]}
RESULT: dict[str, Any] = {
    "backend": "openai",
    "request_rate": 4.0,
    "total_input_tokens": 60,
    "input_lens": [10, 20, 30],
    "output_lens": [1, 0, 3],
    "start_times": [100.5, 100.25, 100.0],
    "errors": ["", "Bad Gateway", ""],
}


def written(folder: Path, *rows: object) -> Path:
    """A file of one JSON value a line; text stands for itself."""
    path = folder / "trace.jsonl"
    lines = [row if isinstance(row, str) else json.dumps(row) for row in rows]
    path.write_text("\n".join(lines) + "\n", "utf8")
    return path


def timed(**other: object) -> dict[str, object]:
    """A request at 28 s, with other fields laid over it."""
    return {"timestamp": 28_000, "input_length": 5, "output_length": 6, **other}


def test_mooncake_counts_milliseconds(tmp_path: Path) -> None:
    """Times count from the first request; the hashes of its prompt are not read."""
    rows = read_trace(written(tmp_path, MOONCAKE, timed()))
    assert (TraceRow(0.0, None, 6_955, 52), TraceRow(0.518, None, 5, 6)) == rows


def test_another_unit_may_be_given(tmp_path: Path) -> None:
    """vLLM replays a timed trace in seconds unless told otherwise."""
    path = written(tmp_path, timed(timestamp=1.5), timed(timestamp=4))
    assert [0.0, 2.5] == [row.arrival_s for row in read_trace(path, timestamp_s=1.0)]


@pytest.mark.parametrize("unit_s", [0.0, -1.0, float("nan"), float("inf")])
def test_a_unit_that_measures_nothing_is_refused(tmp_path: Path, unit_s: float) -> None:
    """It must be above 0 and finite."""
    with pytest.raises(ConfigError, match=f"timestamp unit of {unit_s} s"):
        read_trace(written(tmp_path, timed()), timestamp_s=unit_s)


@pytest.mark.parametrize(("value", "name"), [("sql", "sql"), (14, "14"), (None, None)])
def test_an_adapter_is_named_by_text_or_number(
    tmp_path: Path, value: object, name: str | None
) -> None:
    """A number is taken by its digits, and null is the base model."""
    (row,) = read_trace(written(tmp_path, timed(adapter=value)))
    assert name == row.adapter


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("{'timestamp': 1}", "line 2: .*; expected an object as "),
        ("[1, 2]", r"line 2: \[1, 2\]; expected an object as "),
        pytest.param("[" * 100_000, "expected an object as ", id="nested"),
        ({"timestamp": 1, "input_length": 2}, r"expected .* \(output_length missing\)"),
        (timed(timestamp="soon"), "line 2: 'soon'; expected in timestamp a number"),
        (timed(timestamp=float("nan")), "line 2: nan; expected in timestamp a number"),
        pytest.param(timed(timestamp=10**400), "in timestamp a number", id="huge"),
        (timed(timestamp=True), "line 2: True; expected in timestamp a number"),
        (timed(input_length=2.5), "line 2: 2.5; expected in input_length a whole number"),
        (timed(output_length=None), "line 2: None; expected in output_length a whole number"),
        (timed(output_length=True), "line 2: True; expected in output_length a whole number"),
        (timed(adapter=""), "line 2: ''; expected in adapter a name"),
        (timed(adapter=[1]), r"line 2: \[1\]; expected in adapter a name"),
        (timed(timestamp=27_999), r"before the line above \(0\.001 s later\).*sort the file"),
    ],
)
def test_a_malformed_line_is_told(tmp_path: Path, line: object, message: str) -> None:
    """File, line, what is there and what was expected."""
    with pytest.raises(ConfigError, match=message) as caught:
        read_trace(written(tmp_path, timed(), line, timed()))
    assert "trace.jsonl', line 2: " in str(caught.value)
    assert len(str(caught.value)) < 500


def test_whole_floats_and_zero_are_lengths(tmp_path: Path) -> None:
    """Tables written by pandas count in floats, and an answer may be empty."""
    (row,) = read_trace(written(tmp_path, timed(input_length=31.0, output_length=0)))
    assert (31, 0) == row.lengths


def test_a_result_of_vllms_bench_is_put_in_order_of_start(tmp_path: Path) -> None:
    """Failed requests are left out, as they tell no length; times count from the first start."""
    rows = read_trace(written(tmp_path, RESULT))
    assert (TraceRow(0.0, None, 30, 3), TraceRow(0.5, None, 10, 1)) == rows


def test_a_result_may_be_laid_out_over_lines(tmp_path: Path) -> None:
    """As `jq .` writes it."""
    path = written(tmp_path, json.dumps(RESULT, indent=2))
    assert read_trace(written(tmp_path, RESULT)) == read_trace(path)


@pytest.mark.parametrize(("rate", "times"), [(4.0, [0.0, 0.25, 0.5]), ("inf", [0.0, 0.0, 0.0])])
def test_a_result_without_starts_is_spread_by_its_rate(
    tmp_path: Path, rate: object, times: list[float]
) -> None:
    """Request i arrives at i / rate, all at once where no rate was set."""
    result = {k: v for k, v in RESULT.items() if k not in {"start_times", "errors"}}
    rows = read_trace(written(tmp_path, {**result, "request_rate": rate}))
    assert times == [row.arrival_s for row in rows]


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"input_lens": None}, "in input_lens a list; way out: .* --save-detailed"),
        ({"output_lens": [1]}, r"\[1, 3\]; expected lists of one length"),
        ({"output_lens": [1, 2, "x"]}, r"'x'; expected in output_lens\[2\] a whole number"),
        ({"start_times": [1, 2, None]}, r"None; expected in start_times\[2\] a number"),
    ],
)
def test_a_result_without_detail_is_refused(
    tmp_path: Path, changed: dict[str, object], message: str
) -> None:
    """The message names the list, and how to get it."""
    with pytest.raises(ConfigError, match=f"line 1: .*{message}"):
        read_trace(written(tmp_path, {**RESULT, **changed}))


def test_two_results_in_a_file_are_refused(tmp_path: Path) -> None:
    """`--append-result` writes one below the other; each began at a time of its own."""
    with pytest.raises(ConfigError, match=r"line 2: .*; expected nothing below a result of vLLM"):
        read_trace(written(tmp_path, RESULT, RESULT))


@pytest.mark.parametrize("content", [b"", b"\n \n", gzip.compress(b"", mtime=0)])
def test_a_file_without_requests_is_refused(tmp_path: Path, content: bytes) -> None:
    """The message says which forms there are."""
    (tmp_path / "empty").write_bytes(content)
    with pytest.raises(ConfigError, match=r"holds 0 requests, .* TIMESTAMP,ContextTokens"):
        read_trace(tmp_path / "empty")


@pytest.mark.parametrize("line", ["a,b\n1,2", '{"a": 1}', "{", "\x1b[2J"])
def test_another_file_is_refused(tmp_path: Path, line: str) -> None:
    """The first line is shown, without control characters, with the forms there are."""
    with pytest.raises(ConfigError, match=r"line 1: .*; expected .*timestamp") as caught:
        read_trace(written(tmp_path, line))
    assert str(caught.value).isprintable()


def test_bytes_that_are_no_text_are_told_with_their_line(tmp_path: Path) -> None:
    """Each line is decoded by itself."""
    path = tmp_path / "trace.jsonl"
    path.write_bytes(json.dumps(timed()).encode() + b'\n{"adapter": "\xff"}\n')
    with pytest.raises(ConfigError, match=r"line 2: .*; expected text in UTF-8"):
        read_trace(path)


@pytest.mark.parametrize("cut", [12, 30])
def test_a_damaged_archive_is_refused(tmp_path: Path, cut: int) -> None:
    """It ends too early, in its header's neighbourhood or in its data."""
    packed = gzip.compress(json.dumps(timed()).encode())
    (tmp_path / "cut.gz").write_bytes(packed[:cut])
    with pytest.raises(ConfigError, match=r"cut\.gz' cannot be read"):
        read_trace(tmp_path / "cut.gz")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """The message gives the system's reason."""
    with pytest.raises(ConfigError, match="cannot be read: No such file"):
        read_trace(tmp_path / "missing")


def test_the_rate_is_one_over_the_mean_gap() -> None:
    """Three requests within 4 s come every 2 s; a single one has no rate."""
    rows = [TraceRow(at_s, None, 1, 1) for at_s in (1.0, 2.0, 5.0)]
    assert 0.5 == recorded_rate_per_s(rows)
    assert recorded_rate_per_s(rows[:1]) is None


def test_a_servegen_trace_names_its_clients(data_dir: Path) -> None:
    """1,000 requests of 16 clients in 225.8 s."""
    rows = read_trace(data_dir / "servegen_first.jsonl.gz")
    assert 1_000 == len(rows)
    assert TraceRow(0.068, "13", 64, 31) == rows[1]
    assert TraceRow(225.8, "26", 74, 11) == rows[-1]
    assert 16 == len({row.adapter for row in rows})
