"""The engines of the run: arguments of vLLM's LLM that 0.26 and 0.32 both know, and questions."""

import json
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chameleon_lora.engine_vllm.measure.offline import OfflineQuestion
from experiments.gpu.scale import TARGET_MODULES, RunOptions, Shape

FIRST_TOKEN = 3
BLOCK_TOKENS = 32
CONTEXT_TOKENS = 256
UNCOMPILED = {"mode": 0, "cudagraph_mode": "FULL_DECODE_ONLY"}
"""CUDA graphs for decode and no torch.compile: an engine is up in half the time."""


def proof_engine(options: RunOptions, *, is_async: bool, compiles: bool) -> dict[str, Any]:
    """For the proof's model: a KV cache that is too small, CUDA graphs."""
    proof = options.scale.proof
    return {
        **_engine(options, proof.model, proof.slots, proof.seats, len(proof.ranks)),
        **_graphs(options, _powers(proof.seats), compiles=compiles),
        "max_lora_rank": max(proof.ranks),
        "max_model_len": CONTEXT_TOKENS,
        "max_num_batched_tokens": 64 * proof.seats,
        "block_size": BLOCK_TOKENS,
        "num_gpu_blocks_override": proof.blocks,
        "async_scheduling": is_async,
        "gpu_memory_utilization": 0.5,
    }


def serving_engine(options: RunOptions) -> dict[str, Any]:
    """For the served model, as the servers have it."""
    serving = options.scale.serving
    return {
        **_engine(options, serving.model, serving.slots, serving.seats, serving.adapters),
        **_graphs(options, serving.capture_sizes, compiles=options.compiles),
        "load_format": "dummy",
        "max_lora_rank": max(serving.ranks),
        "max_model_len": serving.model.context_tokens,
        "max_num_batched_tokens": serving.batch_tokens,
        "gpu_memory_utilization": 0.9,
    }


def serving_flags(options: RunOptions) -> list[str]:
    """The same, for servers."""
    serving = options.scale.serving
    flags = [
        *("--served-model-name", "base", "--dtype", serving.model.dtype, "--load-format", "dummy"),
        *("--max-lora-rank", str(max(serving.ranks)), "--lora-target-modules", *TARGET_MODULES),
        *("--max-num-seqs", str(serving.seats)),
        *("--max-num-batched-tokens", str(serving.batch_tokens)),
        *("--max-model-len", str(serving.model.context_tokens)),
        *("--gpu-memory-utilization", "0.9", "--uvicorn-log-level", "warning"),
    ]
    graphs = _graphs(options, serving.capture_sizes, compiles=options.compiles)
    if graphs.get("enforce_eager"):
        flags.append("--enforce-eager")
    if compilation := graphs.get("compilation_config"):
        flags += ["--compilation-config", _compact(compilation)]
    if options.backend:
        flags += ["--attention-backend", options.backend]
    return [*flags, "--max-loras", str(serving.slots)]


def questions_for(
    adapters: Sequence[Path | None],
    shape: Shape,
    prompts: int,
    lengths: tuple[int, int],
    tokens: int,
) -> list[OfflineQuestion]:
    """Each adapter is asked each of `prompts` prompts, of lengths in a half-open range."""
    rng = random.Random(f"{shape.name} {prompts} {lengths}")
    drawn = [
        [rng.randrange(FIRST_TOKEN, shape.vocabulary) for _ in range(rng.randrange(*lengths))]
        for _ in range(prompts)
    ]
    return [
        OfflineQuestion(
            prompt=prompt, adapter=None if adapter is None else str(adapter), tokens=tokens
        )
        for prompt in drawn
        for adapter in adapters
    ]


def popular(count: int, adapters: Sequence[Path], rng: random.Random) -> list[Path]:
    """So many draws, the nth adapter in proportion to 1/n."""
    weights = [1.0 / (place + 1) for place in range(len(adapters))]
    return rng.choices(list(adapters), weights, k=count)


def _engine(
    options: RunOptions, shape: Shape, slots: int, seats: int, adapters: int
) -> dict[str, Any]:
    backend = {"attention_config": {"backend": options.backend}} if options.backend else {}
    return {
        "dtype": shape.dtype,
        "max_loras": slots,
        "max_cpu_loras": max(slots, adapters),
        "max_num_seqs": seats,
        "lora_target_modules": list(TARGET_MODULES),
        "enable_prefix_caching": False,  # it would answer a repeated wave, and a preempted request
        "seed": 0,
        **backend,
    }


def _graphs(options: RunOptions, sizes: Sequence[int], *, compiles: bool) -> dict[str, Any]:
    if options.is_dry:
        return {"enforce_eager": True}
    compilation = {**({} if compiles else UNCOMPILED), "cudagraph_capture_sizes": list(sizes)}
    return {"enforce_eager": False, "compilation_config": compilation}


def _powers(most: int) -> list[int]:
    return [2**power for power in range(most.bit_length()) if 2**power <= most]


def _compact(fields: dict[str, Any]) -> str:
    return json.dumps(fields, separators=(",", ":"))
