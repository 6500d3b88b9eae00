"""What a live vLLM told the policy, told again: the plans are the same.

`.venv/bin/python -m experiments.record_policy` writes the file anew. It is to be written anew when the
policy is meant to decide otherwise, or to be told otherwise; a diff of it shows what became different.
"""

import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.policy.request import AdapterId
from chameleon_lora.policy.settings import CacheSettings, EngineLimits, PolicySettings
from tests.policy.engine_model import EngineModel, adapter, request
from tests.policy.recording import FACTS, Recorder, plan_of, read, tell

ROOT = Path(__file__).resolve().parents[2]
LIMITS = EngineLimits(seats=4, slots=2, kv_tokens=4000, kv_bytes_per_token=10, block_bytes=160)
GOLDEN = Path(__file__).parent / "golden" / "vllm.jsonl"


def test_what_is_recorded_can_be_told_again(tmp_path: Path) -> None:
    """Each kind of fact, from a written-out engine: a fresh scheduler answers the same."""
    model = EngineModel(PolicySettings(cache=CacheSettings(host_bytes=4000)), LIMITS, load_s=0.0)
    recorder: Any = Recorder(model.policy)
    model.policy = recorder
    model.preload(adapter(1, 1000))
    model.register(*(adapter(number, 1000) for number in (2, 3, 4, 5, 6)))
    for number in range(12):
        model.arrive(request(f"r{number}", 1 + number % 5), 3)
        model.step()
    recorder.pin(AdapterId(2), is_pinned=True)
    recorder.prefix_missed(3, model.now_s)
    model.abort(request("r11").id)
    model.run_until_idle()
    model.give_back(*recorder.cache_emptied())
    recorder.unregistered(AdapterId(6))
    model.step()
    told_again = read_and_tell(recorder, tmp_path / "told.jsonl")
    assert [told.answer for told in recorder.told] == told_again
    assert {"preloaded", "step", "arrived", "promoted"} <= {told.fact for told in recorder.told}


def read_and_tell(recorder: Recorder, path: Path) -> list[object]:
    """What a fresh scheduler answers to what was written."""
    recorder.write(path)
    policy, recorded = read(path)
    return [tell(policy, told) for told in recorded]


def answers() -> list[object]:
    """What a fresh scheduler answers to each fact."""
    policy, recorded = read(GOLDEN)
    return [tell(policy, told) for told in recorded]


def test_the_same_facts_give_the_same_plans() -> None:
    """Each answer, in order: plans, and who made room."""
    _, recorded = read(GOLDEN)
    for number, (told, answer) in enumerate(zip(recorded, answers(), strict=True), start=2):
        assert told.answer == answer, f"line {number}: {told.fact} at {told.given.get('now_s')}"


@pytest.mark.slow
def test_plans_do_not_depend_on_the_hash_seed() -> None:
    """Interpreters with other hashes of strings answer the same."""
    program = "from tests.policy.test_recorded_facts import answers; print(answers())"
    path = os.pathsep.join((str(ROOT), str(ROOT / "src")))
    for seed in ("1", "2"):
        told = subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": path},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        assert f"{answers()}\n" == told


def test_the_record_tells_of_what_vllm_brings_about() -> None:
    """Loads and evictions, slots, copies in KV blocks and their return, pins, withdrawals, a reset."""
    _, recorded = read(GOLDEN)
    told = {one.fact for one in recorded}
    assert {"cache_emptied", "finished", "loaded", "make_room", "pin", "promoted"} <= told <= FACTS
    plans = [plan_of(one) for one in recorded if one.fact == "step"]
    for name in ("admit", "loads", "drops", "activations", "demotions", "promotions"):
        assert any(getattr(plan, name) for plan in plans), name
    assert any(load.evicts for plan in plans for load in plan.loads)
    assert any(admission.lane for plan in plans for admission in plan.admit)
