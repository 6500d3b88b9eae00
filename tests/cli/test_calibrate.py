"""`chameleon calibrate`: what it refuses, what it makes of a log, and once all of it."""

import argparse
from pathlib import Path

import pytest

from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.cli.calibrate import (
    Ground,
    add_parser,
    calibrate_command,
    fitted,
    server_command,
    summary,
    usable_adapters,
)
from chameleon_lora.cli.main import main
from chameleon_lora.compare.demo_adapters import TARGET_MODULES
from chameleon_lora.engine_vllm.measure.step_log import CopyRow, StepLog, StepRow
from chameleon_lora.errors import BenchError, ConfigError
from chameleon_lora.sim.profile import Basis, read_profile

DIMS = ModelDims(128, 256, 2, 4, 2, 32, "tiny")
RANK_BYTES = 2 * 4 * (4 * 128 + 128 + 64 + 64 + 128)  # 2 layers, float32; q, k, v, o


def parse(*words: str) -> argparse.Namespace:
    """What the command line means."""
    parser = argparse.ArgumentParser()
    add_parser(parser.add_subparsers())
    return parser.parse_args(["calibrate", *words])


@pytest.fixture
def adapters_dir(tmp_path: Path) -> Path:
    """Two adapters of ranks 8 and 64."""
    for rank in (8, 64):
        path = tmp_path / "adapters" / f"a-r{rank}"
        make_adapter(path, DIMS, rank, seed=rank, target_modules=TARGET_MODULES)
    return tmp_path / "adapters"


@pytest.fixture
def ground(adapters_dir: Path) -> Ground:
    """Chameleon on the adapter that fits slots of rank 16."""
    engine = {
        "max_num_seqs": 4,
        "max_loras": 2,
        "max_lora_rank": 16,
        "lora_target_modules": ["q_proj", "v_proj"],
    }
    adapters = usable_adapters(adapters_dir, 16)
    return Ground(Path("/models/m"), adapters_dir, adapters, True, engine)


def log_of(steps: int) -> StepLog:
    """Steps of 10 ms and a millisecond for each prompt token and each decode, some with copies besides."""
    log = StepLog(kv_blocks=4, block_bytes=1600, block_tokens=16)
    for number in range(steps):
        prefill, decodes = 8 * (number % 3), number % 5
        copy_s = 0.05 * (decodes % 2)
        row = StepRow(prefill_tokens=prefill, decode_requests=decodes)
        row.seconds = 0.010 + 0.001 * (prefill + decodes) + copy_s
        log.steps.append(row)
        log.copies_s.append(copy_s)
    log.copies = [CopyRow("host", RANK_BYTES * 8, 0.002, in_step=True)] * 6
    log.copies += [CopyRow("disk", RANK_BYTES * 8, 0.010, in_step=False)] * 6
    log.copies += [CopyRow("device", 0, 0.001, in_step=True)] * 6
    return log


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


def test_adapters_above_the_rank_are_left_out(adapters_dir: Path) -> None:
    """A slot of rank 16 cannot hold rank 64."""
    assert ["a-r8"] == [info.name for info in usable_adapters(adapters_dir, 16)]


def test_no_adapter_that_fits_is_refused(adapters_dir: Path) -> None:
    """The message gives the way out."""
    with pytest.raises(ConfigError, match=r"2 adapters, and none .* rank of 4 .*--max-lora-rank"):
        usable_adapters(adapters_dir, 4)


def test_a_log_becomes_a_profile(ground: Ground) -> None:
    """Costs of steps without their copies, links, memory with the slots.

    Device copies whose bytes are unknown are left out; the way from host memory stands for them.
    """
    profile, fit = fitted("mine", ground, log_of(300), 0.007)
    assert pytest.approx(0.010, rel=1e-3) == profile.step.base_s
    assert pytest.approx(0.001, rel=1e-3) == profile.step.prefill_token_s
    assert pytest.approx(0.001, rel=1e-3) == profile.step.decode_request_s
    assert pytest.approx(0.002, rel=1e-3) == profile.host_link.copy_s(RANK_BYTES * 8)
    assert pytest.approx(0.010, rel=1e-3) == profile.disk.copy_s(RANK_BYTES * 8)
    assert profile.host_link == profile.device_copy
    assert RANK_BYTES == profile.memory.adapter_bytes_per_rank
    assert 4 * 1600 + 2 * 16 * RANK_BYTES == profile.memory.pool_bytes
    assert 100 == profile.memory.kv_bytes_per_token
    assert 0.007 == profile.request_s
    assert Basis.MEASURED == profile.basis
    assert fit.step_error == profile.error["step"]


def test_the_summary_shows_costs_copies_and_error(ground: Ground) -> None:
    """In microseconds, milliseconds and percent."""
    log = log_of(300)
    text = summary(*fitted("mine", ground, log, 0.007), log)
    assert "prefill_token           1000.000" in text
    assert "(6 measured)" in text
    assert "60 steps kept out of the fit: 0.0 % a step" in text


def test_a_server_without_steps_is_told(ground: Ground) -> None:
    """There is nothing to fit to."""
    with pytest.raises(BenchError, match="0 steps are too few"):
        fitted("mine", ground, StepLog(), 0.007)


@pytest.mark.parametrize(
    ("has_chameleon", "word"), [(True, "chameleon_lora.cli.main"), (False, "--lora-modules")]
)
def test_both_servers_get_the_engines_arguments(
    ground: Ground, has_chameleon: bool, word: str
) -> None:
    """As flags; vLLM's own is given each adapter by name."""
    one = Ground(
        ground.model_dir, ground.adapters_dir, ground.adapters, has_chameleon, ground.engine
    )
    command = server_command(one, 8123)
    assert word in command
    at = command.index("--lora-target-modules")
    assert ["q_proj", "v_proj"] == command[at + 1 : at + 3]
    assert "4" == command[command.index("--max-num-seqs") + 1]
    assert (f"a-r8={ground.adapters[0].path}" in command) is not has_chameleon


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
