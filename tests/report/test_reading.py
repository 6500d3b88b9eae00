"""Which folders are runs, and what happens to those that are broken."""

import json
from pathlib import Path

import pytest

from chameleon_lora.errors import BenchError, ConfigError
from chameleon_lora.report.reading import read_evidence, read_run
from tests.report.sample import comparison, record, write, write_comparison


def test_runs_are_found_at_any_depth_and_once(tmp_path: Path) -> None:
    """By path, though a path and its parent are both given; a model's config.json is no run."""
    inner = write(tmp_path / "b" / "deep" / "run", label="y")
    write(tmp_path / "a", label="x")
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text('{"architectures": ["LlamaForCausalLM"]}')
    evidence = read_evidence([tmp_path, inner])
    assert ["x", "y"] == [run.label for run in evidence.runs]
    assert ((), ("x", "y")) == (evidence.skipped, evidence.arms)


def test_the_warm_up_does_not_count(tmp_path: Path) -> None:
    """Nor do requests after the end; rates are over the time between."""
    records = [record(index, ttft_s=5.0 if index < 2 else 0.1) for index in range(6)]
    write(tmp_path, records, warmup_s=2.0, duration_s=5.0)
    run = read_run(tmp_path)
    assert [2, 3, 4] == [found.index for found in run.records]
    assert run.figures.ttft is not None
    assert pytest.approx(0.1) == run.figures.ttft.max_s
    assert pytest.approx(1.0) == run.figures.requests_per_s
    assert pytest.approx(3.0) == run.figures.output_tokens_per_s


def test_a_folder_of_the_demo_is_a_run(tmp_path: Path) -> None:
    """It has a server for a label, and no purpose, load or window."""
    folder = write(tmp_path / "x")
    old = {"server": "chameleon", "seconds": 60.0, "rate_per_s": 2.0, "command": ["a", "b c"]}
    (folder / "config.json").write_text(json.dumps(old))
    run = read_run(folder)
    assert ("chameleon", "run", 2.0, None) == (
        run.label, run.purpose.value, run.rate_per_s, run.load,
    )  # fmt: skip
    assert "a 'b c'" == run.command
    assert 3 == run.figures.requests


def test_the_comparison_gives_order_and_objective(tmp_path: Path) -> None:
    """Arms come in its order, and its objective holds for runs that name none."""
    write(tmp_path / "a", label="ours <1>", slo_ttft_s=None)
    write(tmp_path / "z", label="stock")
    (tmp_path / "comparison.json").write_text(json.dumps(comparison(slo_ttft_s=0.05)))
    evidence = read_evidence([tmp_path])
    assert (("stock", "ours <1>"), 0.05) == (evidence.arms, evidence.slo_s)
    assert 0.0 == evidence.runs[0].figures.slo_share


@pytest.mark.parametrize(
    ("name", "text", "said"),
    [
        ("config.json", '{"label": ', "config.json cannot be read"),
        ("config.json", "[]", "holds no JSON object"),
        (
            "config.json",
            '{"purpose": "fly"}',
            "config.json holds what no run holds (Invalid enum value 'fly' - at `$.purpose`)",
        ),
        ("config.json", '{"warmup_s": "long"}', "Expected `float`, got `str` - at `$.warmup_s`"),
        ("records.jsonl", None, "half-written: it has no records.jsonl"),
        ("records.jsonl", '{"index": 0, "adap', "records.jsonl:1 is not a request record"),
        ("records.jsonl", "", "holds no request that counts"),
        ("samples.jsonl", "{}", "samples.jsonl:1 is not a sample"),
    ],
)
def test_a_broken_run_is_left_out_and_named(
    tmp_path: Path, name: str, text: str | None, said: str
) -> None:
    """Beside a good one it is skipped with the reason; alone there is nothing to report."""
    broken = write(tmp_path / "broken", label="b")
    path = broken / name
    if text is None:
        path.unlink()
    else:
        path.write_text(text)
    with pytest.raises(ConfigError, match="no run can be read"):
        read_evidence([broken])
    write(tmp_path / "good")
    evidence = read_evidence([tmp_path])
    assert ["stock"] == [run.label for run in evidence.runs]
    assert 1 == len(evidence.skipped)
    assert said in evidence.skipped[0]
    assert str(broken) in evidence.skipped[0]


@pytest.mark.parametrize("value", ["NaN", "1e999", '"soon"', "null"])
def test_times_that_are_no_times_are_refused(tmp_path: Path, value: str) -> None:
    """JSON may hold what no clock shows."""
    path = write(tmp_path) / "records.jsonl"
    path.write_text(path.read_text().replace('"end_s": 0.14', f'"end_s": {value}', 1))
    with pytest.raises(BenchError):
        read_run(tmp_path)


def test_what_holds_no_run_is_an_error(tmp_path: Path) -> None:
    """A path that is not there, a file, and a folder without runs."""
    (tmp_path / "file").write_text("x")
    for name, said in (("none", "is no folder"), ("file", "is no folder"), ("", "holds no run")):
        with pytest.raises(ConfigError, match=said):
            read_evidence([tmp_path / name])


def test_two_comparisons_are_not_mixed(tmp_path: Path) -> None:
    """Their ratios are to different bases."""
    for name in ("one", "two"):
        write_comparison(tmp_path / name)
    with pytest.raises(ConfigError, match="2 comparisons"):
        read_evidence([tmp_path])


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ("{", "line 1 column 2"),
        ("[]", "Expected `object`, got `array`"),
        ("{}", "missing required field `base`"),
        (json.dumps(comparison(failed="2")), "Expected `int`, got `str` - at `$.failed`"),
        (json.dumps(comparison(ratios=[{}])), "field `label` - at `$.ratios[0]`"),
    ],
)
def test_a_broken_comparison_is_named_and_its_runs_stay(
    tmp_path: Path, text: str, said: str
) -> None:
    """As any broken run, with the field that is wrong."""
    write(tmp_path / "run")
    (tmp_path / "comparison.json").write_text(text)
    evidence = read_evidence([tmp_path])
    assert evidence.comparison is None
    assert 1 == len(evidence.runs)
    assert f"{tmp_path / 'comparison.json'} is no comparison (" in evidence.skipped[0]
    assert said in evidence.skipped[0]
