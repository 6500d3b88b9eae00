"""What Chameleon costs where it cannot help, and how many adapters a gigabyte of its memory holds.

Engines without a server on the served model. All seats ask for one adapter, then for a mix by
popularity: tokens/s of Chameleon over stock's.
"""

import os
import random
from collections.abc import Sequence
from pathlib import Path
from statistics import median
from typing import Any

from chameleon_lora.adapters.make import DEFAULT_SCALE
from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.measure.offline import (
    ENVIRONMENT,
    OfflineEngine,
    OfflineJob,
    OfflineQuestion,
    OfflineResult,
    Wave,
    run_offline,
)
from chameleon_lora.errors import BenchError
from experiments.gpu.folders import adapters_of, ensure_adapters, ensure_model, model_folder
from experiments.gpu.jobs import FIRST_TOKEN, popular, serving_engine
from experiments.gpu.outcome import StageResults
from experiments.gpu.scale import RunOptions

REPEATS = 4  # the first warms up
SEATS_FULL = 4
GB = 1e9


def served_adapters(options: RunOptions) -> tuple[Path, list[Path]]:
    """The served model's folder, and its adapters by popularity; made at the first call."""
    serving = options.scale.serving
    model = ensure_model(options.work, serving.model, has_weights=False)
    ranks = [serving.ranks[n % len(serving.ranks)] for n in range(serving.adapters)]
    return model, ensure_adapters(
        options.work, model, ranks, serving.model.dtype, scale=DEFAULT_SCALE
    )


def adapters_folder(options: RunOptions) -> Path:
    """Where the served model's adapters are, once they are made."""
    return adapters_of(
        options.work, model_folder(options.work, options.scale.serving.model, has_weights=False)
    )


def chameleon_here(options: RunOptions) -> tuple[OfflineEngine, list[Path]]:
    """Chameleon's engine in this process, which may hold no other, and the adapters."""
    os.environ.update(ENVIRONMENT)
    model, adapters = served_adapters(options)
    return OfflineEngine(_job(options, model, SCHEDULER, [])), adapters


def measure_engines(options: RunOptions, results: StageResults) -> None:
    """Notes both sides' tokens/s, and what Chameleon holds.

    Raises:
        BenchError: an engine ended without a result.
    """
    model, adapters = served_adapters(options)
    waves = [
        warm_wave(options, adapters),
        *[_one_adapter_wave(options, adapters[0])] * REPEATS,
        *[
            mixed_wave(options, adapters, seed, options.scale.serving.each_tokens)
            for seed in (1, 2)
        ],
        warm_wave(options, adapters),
    ]
    rates: dict[str, dict[str, float]] = {}
    for label, scheduler in (("stock", None), ("chameleon", SCHEDULER)):
        result = run_offline(_job(options, model, scheduler, waves))
        rates[label] = _rates(waves, result)
        results.add(**{label: {**rates[label], **_held(result)}})
    shares = {
        name: rates["chameleon"][name] / rates["stock"][name] for name in ("one_adapter", "mixed")
    }
    results.add(chameleon_over_stock=shares)
    if min(shares.values()) <= 0.0:
        raise BenchError("an engine answered nothing")


def warm_wave(options: RunOptions, adapters: Sequence[Path]) -> Wave:
    """One token of each adapter, so that all have been read."""
    return _wave(options, adapters, seed=0, tokens=1)


def mixed_wave(options: RunOptions, adapters: Sequence[Path], seed: int, tokens: int) -> Wave:
    """Four times as many requests as seats, their adapters by popularity."""
    drawn = popular(SEATS_FULL * options.scale.serving.seats, adapters, random.Random(seed))
    return _wave(options, drawn, seed, tokens)


def _one_adapter_wave(options: RunOptions, adapter: Path) -> Wave:
    serving = options.scale.serving
    return _wave(options, [adapter] * serving.seats, seed=3, tokens=serving.each_tokens)


def _wave(options: RunOptions, adapters: Sequence[Path], seed: int, tokens: int) -> Wave:
    serving, rng = options.scale.serving, random.Random(seed)
    questions = [
        OfflineQuestion(
            prompt=[
                rng.randrange(FIRST_TOKEN, serving.model.vocabulary)
                for _ in range(serving.each_tokens)
            ],
            adapter=str(adapter),
            tokens=tokens,
        )
        for adapter in adapters
    ]
    return Wave(questions=questions, before="nothing")


def _job(options: RunOptions, model: Path, scheduler: str | None, waves: list[Wave]) -> OfflineJob:
    return OfflineJob(
        model=str(model),
        scheduler=scheduler,
        settings={"serving": {"lora_backend": "slots"}},  # a dry run has none otherwise
        engine=serving_engine(options),
        waves=waves,
    )


def _rates(waves: Sequence[Wave], result: OfflineResult) -> dict[str, float]:
    """Output tokens/s: the median over waves of one adapter, and of the mixed ones."""
    found = [
        sum(len(answer["tokens"]) for answer in wave["answers"]) / wave["seconds"]
        for wave in result["waves"]
    ]
    assert len(found) == len(waves)
    return {"one_adapter": median(found[2 : 1 + REPEATS]), "mixed": median(found[1 + REPEATS : -1])}


def _held(result: OfflineResult) -> dict[str, Any]:
    """Adapters in idle KV blocks at the end, and how many a gigabyte holds there and in slots."""
    last = result["waves"][-1]
    held_bytes = last["held_blocks"] * result["block_bytes"]
    return {
        "kv_bytes": result["kv_blocks"] * result["block_bytes"],
        "held_adapters": last["held_adapters"],
        "held_bytes": held_bytes,
        "held_a_gb": last["held_adapters"] / held_bytes * GB if held_bytes else 0.0,
        "slot_bytes": result["slot_bytes"],
        "slots_a_gb": GB / result["slot_bytes"] if result["slot_bytes"] else 0.0,
        "activations": {
            source: sum(counts["counts"])
            for source, counts in result["counts"].get("activation_stall_seconds", {}).items()
        },
    }
