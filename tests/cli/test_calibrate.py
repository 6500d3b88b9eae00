"""`chameleon calibrate`: what it refuses, and once all of it."""

import argparse
from pathlib import Path

import pytest

from chameleon_lora.cli.calibrate import add_parser, calibrate_command
from chameleon_lora.cli.main import main
from chameleon_lora.sim.profile import read_profile


def parse(*words: str) -> argparse.Namespace:
    """What the command line means."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["calibrate", *words])


def test_without_options_it_is_chameleon_in_a_small_engine() -> None:
    """16 seats, 4 slots of rank 16, a minute and a half."""
    args = parse("--model", "tiny", "--out", "x.toml")
    assert ("chameleon", 90.0, 16, 256, 512, 4, 16) == (
        args.scheduler,
        args.seconds,
        args.max_num_seqs,
        args.max_num_batched_tokens,
        args.max_model_len,
        args.max_loras,
        args.max_lora_rank,
    )
    assert args.run is calibrate_command


@pytest.mark.parametrize("words", [("--seconds", "0"), ("--max-loras", "0"), ("--seconds", "inf")])
def test_impossible_numbers_are_refused(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the option."""
    with pytest.raises(SystemExit):
        parse("--model", "tiny", "--out", "x.toml", *words)
    assert words[0] in capsys.readouterr().err


def test_a_profile_that_exists_is_not_written_over(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing starts, and the file stays."""
    pytest.importorskip("vllm")
    path = tmp_path / "p.toml"
    path.write_text("mine", encoding="utf-8")
    assert 2 == main(["calibrate", "--model", "tiny", "--out", str(path)])
    assert "is not overwritten" in capsys.readouterr().err
    assert "mine" == path.read_text(encoding="utf-8")


def test_a_folder_that_is_no_model_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names it and what would do."""
    pytest.importorskip("vllm")
    out = str(tmp_path / "p.toml")
    assert 2 == main(["calibrate", "--model", str(tmp_path), "--out", out])
    assert f"{str(tmp_path)!r} is no model's folder" in capsys.readouterr().err


def test_a_place_that_does_not_exist_is_refused_before_anything_runs(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A minute of measuring is not lost to a spelling mistake."""
    pytest.importorskip("vllm")
    out = str(tmp_path / "absent" / "p.toml")
    assert 2 == main(["calibrate", "--model", "tiny", "--out", out])
    assert "does not exist" in capsys.readouterr().err


@pytest.mark.vllm
@pytest.mark.slow
def test_a_live_server_is_calibrated(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The command writes a profile that reads back, with costs, copies and an error."""
    pytest.importorskip("vllm")
    out = tmp_path / "here.toml"
    words = ["--model", "tiny", "--seconds", "8", "--max-num-seqs", "4", "--out", str(out)]
    assert 0 == main(["calibrate", *words])
    profile = read_profile(str(out))
    assert "here" == profile.name
    assert profile.step.base_s > 0.0
    assert profile.request_s > 0.0
    assert profile.host_link.copy_s(1 << 20) > 0.0
    assert profile.memory.block_tokens == 128
    assert {"step", "total"} == set(profile.error)
    assert f"written to {out}" in capsys.readouterr().out
