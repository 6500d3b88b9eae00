"""Records what a live vLLM tells the policy, for tests/policy/test_recorded_facts.py.

Run: `.venv/bin/python -m experiments.record_policy`. It serves some dozens of requests of more adapters
than there are slots with the tiny model, in this process, and writes `tests/policy/golden/vllm.jsonl`;
`--out` names another file. Times and the order of loads are the machine's, so no two files are alike.
"""

import argparse
import os
import random
import tempfile
from pathlib import Path
from typing import Any

from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.measure.offline import (
    ENVIRONMENT,
    OfflineEngine,
    OfflineJob,
    OfflineQuestion,
    Wave,
)
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model
from tests.policy.recording import Recorder

GOLDEN = Path(__file__).resolve().parents[1] / "tests" / "policy" / "golden" / "vllm.jsonl"
RANKS = (4, 8, 16, 4, 8, 16)
ENGINE: dict[str, Any] = {
    "max_loras": 2,
    "max_lora_rank": 16,
    "max_num_seqs": 4,
    "max_num_batched_tokens": 128,
    "max_model_len": 128,
    "block_size": 32,
    "num_gpu_blocks_override": 18,
}
SETTINGS: dict[str, Any] = {
    "device": {"promotions_per_s": 1000.0, "headroom_share": 0.0},
    "cache": {"host_bytes": 900_000},
    "lanes": {"first_after": 24},
    "serving": {"lora_backend": "slots"},
}


def main() -> None:
    """The file has everything the policy was told."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--out", type=Path, default=GOLDEN)
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    os.environ.update(ENVIRONMENT)
    with tempfile.TemporaryDirectory() as folder:
        recorder = record(Path(folder), random.Random(given.seed))
    given.out.parent.mkdir(parents=True, exist_ok=True)
    recorder.write(given.out)
    steps = sum(told.fact == "step" for told in recorder.told)
    print(f"{given.out}: {len(recorder.told)} facts, {steps} of them steps")


def record(folder: Path, rng: random.Random) -> Recorder:
    """Three waves of requests; between them a pin, a withdrawal and a reset of the KV cache."""
    model = ensure_tiny_model(default_cache_dir())
    dims = ModelDims.from_model(model)
    adapters = [
        str(make_adapter(folder / f"a{seed}", dims, rank, seed=seed))
        for seed, rank in enumerate(RANKS)
    ]
    broken = make_adapter(folder / "broken", dims, 4, seed=9)
    (broken / WEIGHTS_NAME).unlink()
    job = OfflineJob(
        model=str(model), scheduler=SCHEDULER, settings=SETTINGS, engine=ENGINE, waves=[]
    )
    engine = OfflineEngine(job)
    assert engine.driver is not None
    recorder = stand_in(engine.driver)
    prompts = [[rng.randrange(3, 512) for _ in range(rng.randrange(8, 70))] for _ in range(5)]
    for number, before in enumerate(("nothing", "nothing", "reset")):
        named = [None, *adapters, str(broken)] if number == 1 else [None, *adapters]
        questions = [
            OfflineQuestion(prompt=rng.choice(prompts), adapter=name, tokens=rng.randrange(2, 14))
            for name in rng.choices(named, k=20)
        ]
        engine.run(Wave(questions=questions, before=before))  # type: ignore[typeddict-item]  # a str
        engine.driver.pin(Path(adapters[number]).name, is_pinned=True)
        loose = [a for a in engine.driver.view().adapters if a.is_in_host and not a.is_pinned]
        engine.driver.withdraw(engine.driver.versions[loose[-1].adapter.id].source.name)
    return recorder


def stand_in(driver: Driver) -> Recorder:
    """Afterwards a recorder stands between the driver and its policy."""
    recorder: Any = Recorder(driver.policy)
    driver.policy = recorder
    if driver.loans is not None:
        driver.loans.policy = recorder
    return recorder  # type: ignore[no-any-return]


if __name__ == "__main__":
    main()
