"""What calibration makes of adapters, of a log, and of a server."""

import sys
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.calibrate.app import (
    CalibrationTarget,
    check_request,
    fitted,
    server_command,
    summary,
    usable_adapters,
)
from chameleon_lora.engine_vllm.measure.step_log import CopyRow, StepLog, StepRow
from chameleon_lora.errors import BenchError, ConfigError
from chameleon_lora.metrics.step_work import StepWork
from chameleon_lora.servers.launching import EngineShape
from chameleon_lora.servers.tiny_model import TARGET_MODULES
from chameleon_lora.sim.profile import Basis, parse_profile, profile_text

DIMS = ModelDims(128, 256, 2, 4, 2, 32, "tiny")
RANK_BYTES = 2 * 4 * (4 * 128 + 128 + 64 + 64 + 128)  # 2 layers, float32; q, k, v, o


@pytest.fixture
def adapters_dir(tmp_path: Path) -> Path:
    """Two adapters of ranks 8 and 64."""
    for rank in (8, 64):
        path = tmp_path / "adapters" / f"a-r{rank}"
        make_adapter(path, DIMS, rank, seed=rank, target_modules=TARGET_MODULES)
    return tmp_path / "adapters"


@pytest.fixture
def target(adapters_dir: Path) -> CalibrationTarget:
    """Chameleon on the adapter that fits slots of rank 16."""
    shape = EngineShape(slots=2, seats=4, target_modules=("q_proj", "v_proj"))
    adapters = usable_adapters(adapters_dir, 16)
    return CalibrationTarget(
        Path("/models/m"), adapters_dir, adapters, has_chameleon=True, shape=shape
    )


def log_of(steps: int) -> StepLog:
    """Steps of 10 ms and a millisecond for each prompt token and each decode, some with copies besides."""
    log = StepLog(kv_blocks=4, block_bytes=1600, block_tokens=16)
    for number in range(steps):
        prefill, decodes = 8 * (number % 3), number % 5
        copy_s = 0.05 * (decodes % 2)
        work = StepWork(prefill_tokens=prefill, decode_requests=decodes)
        log.steps.append(StepRow(work, seconds=0.010 + 0.001 * (prefill + decodes) + copy_s))
        log.copies_s.append(copy_s)
    log.copies = [CopyRow("host", RANK_BYTES * 8, 0.002, in_step=True)] * 6
    log.copies += [CopyRow("disk", RANK_BYTES * 8, 0.010, in_step=False)] * 6
    log.copies += [CopyRow("device", 0, 0.001, in_step=True)] * 6
    return log


def test_adapters_above_the_rank_are_left_out(adapters_dir: Path) -> None:
    """A slot of rank 16 cannot hold rank 64."""
    assert ["a-r8"] == [info.name for info in usable_adapters(adapters_dir, 16)]


def test_no_adapter_that_fits_is_refused(adapters_dir: Path) -> None:
    """The message gives the way out."""
    with pytest.raises(ConfigError, match=r"2 adapters, and none .* rank of 4 .*--max-lora-rank"):
        usable_adapters(adapters_dir, 4)


def test_a_log_becomes_a_profile(target: CalibrationTarget) -> None:
    """Costs of steps without their copies, links, memory with the slots.

    Device copies whose bytes are unknown are left out; the way from host memory stands for them.
    """
    profile, fit = fitted("mine", target, log_of(300), 0.007)
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


def test_an_engine_without_slots_becomes_a_profile_without_copies(
    target: CalibrationTarget,
) -> None:
    """Adapters are read from disk and copied no further; all of the pool is KV cache."""
    log = log_of(300)
    log.in_host, log.copies = True, [copy for copy in log.copies if copy.source == "disk"][:1]
    profile, fit = fitted("mine", target, log, 0.007)
    assert (True, 4 * 1600) == (profile.in_host, profile.memory.pool_bytes)
    assert pytest.approx(0.010, rel=1e-3) == profile.disk.copy_s(RANK_BYTES * 8)
    assert 0.0 == pytest.approx(profile.host_link.copy_s(RANK_BYTES * 8), abs=1e-6)
    text = summary(profile, fit, log)
    assert ("disk" in text, "host_link" in text, "lora_adapter_rank" in text) == (True, False, True)
    assert profile == parse_profile(profile_text(profile), "mine")


def test_the_summary_shows_costs_copies_and_error(target: CalibrationTarget) -> None:
    """In microseconds, milliseconds and percent."""
    log = log_of(300)
    text = summary(*fitted("mine", target, log, 0.007), log)
    assert "prefill_token           1000.000" in text
    assert "(6 measured)" in text
    assert "60 steps kept out of the fit: 0.0 % a step" in text


def test_a_server_without_steps_is_told(target: CalibrationTarget) -> None:
    """There is nothing to fit to."""
    with pytest.raises(BenchError, match="0 steps are too few"):
        fitted("mine", target, StepLog(), 0.007)


@pytest.mark.parametrize(
    ("has_chameleon", "word"), [(True, "chameleon_lora.cli.main"), (False, "--lora-modules")]
)
def test_both_servers_get_the_engines_arguments(
    target: CalibrationTarget, has_chameleon: bool, word: str
) -> None:
    """As flags; vLLM's own is given each adapter by name."""
    command = server_command(replace(target, has_chameleon=has_chameleon))
    assert word in command
    at = command.index("--lora-target-modules")
    assert ("q_proj", "v_proj") == command[at + 1 : at + 3]
    assert "4" == command[command.index("--max-num-seqs") + 1]
    assert (f"a-r8={target.adapters[0].path}" in command) is not has_chameleon
    assert ("serving.lora_backend=auto" in command) is has_chameleon


def test_without_scipy_nothing_starts(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """The message says how to get it."""
    pytest.importorskip("vllm")
    monkeypatch.setitem(sys.modules, "scipy", None)
    with pytest.raises(ConfigError, match=r"scipy.*pip install 'chameleon-lora\[calibrate\]'"):
        check_request("tiny", tmp_path / "p.toml")
