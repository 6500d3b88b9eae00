"""`chameleon workload describe`: figures, exit codes and messages."""

import dataclasses
import json
from pathlib import Path

import pytest

from chameleon_lora.cli.main import main
from chameleon_lora.workload.describe import describe
from chameleon_lora.workload.trace import read_trace

EXPECTED = """\
requests       4
duration       180.0 s (0.05 h)
rate           0.01667/s
gaps           CV 1.39 (Poisson: 1)
per minute     index of dispersion 3.00 (Poisson: 1), peak 3.00 times the mean
                    mean      P50      P90      P95      P99      max
input tokens         600      150    1,460    1,730    1,946    2,000
output tokens          2        2        3        3        3        3
adapters       2; 25.0% of requests name none
popularity     the first has 66.7%; rank^-1.00 fits best (maximum likelihood)
drift          50.0% of requests moved between the halves, 100.0% by chance (odd and even requests)
"""


@pytest.fixture
def trace(tmp_path: Path) -> Path:
    """Four requests, three of them in the first minute, for two adapters and the base model."""
    rows = [(0, "a", 100, 1), (1_000, "b", 100, 2), (2_000, None, 200, 3), (180_000, "a", 2_000, 3)]
    lines = [
        {"timestamp": ms, "adapter": adapter, "input_length": i, "output_length": o}
        for ms, adapter, i, o in rows
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf8")
    return path


def test_figures_are_printed(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line a figure, with what a Poisson stream would have."""
    assert 0 == main(["workload", "describe", str(trace)])
    assert capsys.readouterr().out == EXPECTED


def test_json_gives_the_same_figures(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Every field of the summary, under its own name."""
    assert 0 == main(["workload", "describe", str(trace), "--json"])
    printed = json.loads(capsys.readouterr().out)
    assert dataclasses.asdict(describe(read_trace(trace))) == printed


def test_timestamps_may_be_seconds(trace: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The unit is an option, as in `vllm bench serve`."""
    assert 0 == main(["workload", "describe", str(trace), "--timestamp-s", "1", "--json"])
    assert 180_000.0 == json.loads(capsys.readouterr().out)["duration_s"]


def test_one_request_has_no_rate(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """What cannot be told is said in words, and is null in JSON."""
    path = tmp_path / "one.csv"
    path.write_text("TIMESTAMP,ContextTokens,GeneratedTokens\n2024-05-10 00:00:00+00:00,9,1\n")
    assert 0 == main(["workload", "describe", str(path)])
    assert "rate           none: no time passes" in capsys.readouterr().out
    assert 0 == main(["workload", "describe", str(path), "--json"])
    assert json.loads(capsys.readouterr().out)["rate_per_s"] is None


@pytest.mark.parametrize("words", [("missing.jsonl",), (".",), ("trace.jsonl", "--timestamp-s=0")])
def test_what_cannot_be_read_ends_with_two(
    trace: Path, words: tuple[str, ...], capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error, and nothing on standard output."""
    assert 2 == main(["workload", "describe", str(trace.parent / words[0]), *words[1:]])
    printed = capsys.readouterr()
    assert "" == printed.out
    assert printed.err.startswith("chameleon workload: ")
    assert 1 == len(printed.err.splitlines())


def test_a_malformed_line_ends_with_two_and_is_named(
    trace: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """File, line, what is there, what was expected."""
    with trace.open("a") as lines:
        lines.write('{"timestamp": 180001, "input_length": "ten", "output_length": 1}\n')
    assert 2 == main(["workload", "describe", str(trace)])
    error = capsys.readouterr().err
    assert f"{str(trace)!r}, line 5: 'ten'; expected in input_length a whole number" in error
