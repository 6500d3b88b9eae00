"""The same input and seed give the same bytes, in this process and in any other."""

import subprocess
import sys
from pathlib import Path

import msgspec
import pytest

from chameleon_lora.policy.settings import Preset, preset
from chameleon_lora.sim.figures import figures
from chameleon_lora.sim.run import simulate
from chameleon_lora.sim.setup import S_LORA, EngineStyle
from chameleon_lora.workload.lengths import LengthScale
from chameleon_lora.workload.requests import WorkloadSpec, make_workload
from tests.sim.setups import ANY, profile, setup

ROOT = Path(__file__).resolve().parents[2]
SHORT = LengthScale(factor=0.2)
SLOTS = EngineStyle(seats=8, slots=2, max_rank=16, is_preloaded=False)


def summary(name: Preset, *, is_paged: bool, seed: int = 1) -> bytes:
    """The figures of some seconds under pressure, as JSON."""
    style = S_LORA if is_paged else SLOTS
    made = setup(profile(ANY, 400, link_s=0.002), style, preset(name), ranks=(4, 8, 16) * 7)
    spec = WorkloadSpec(rate_per_s=6.0, duration_s=6.0, alpha=0.5, lengths=SHORT)
    return msgspec.json.encode(
        figures(simulate(made, make_workload(spec, made.adapters, seed)), 1.0, 1.0)
    )


@pytest.mark.parametrize("name", Preset)
@pytest.mark.parametrize("is_paged", [False, True])
def test_same_seed_same_bytes(name: Preset, is_paged: bool) -> None:
    """Twice in a row; another seed gives others."""
    first = summary(name, is_paged=is_paged)
    assert first == summary(name, is_paged=is_paged)
    assert first != summary(name, is_paged=is_paged, seed=2)


@pytest.mark.slow
def test_summary_does_not_depend_on_the_hash_seed() -> None:
    """Nor on the process: interpreters with different string hashes tell the same."""
    program = (
        "from tests.sim.test_determinism import summary, Preset\n"
        "print([summary(name, is_paged=is_paged) for name in Preset for is_paged in (False, True)])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT / 'src'}:{ROOT}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    here = [summary(name, is_paged=is_paged) for name in Preset for is_paged in (False, True)]
    assert f"{here}\n" == runs[0] == runs[1]
