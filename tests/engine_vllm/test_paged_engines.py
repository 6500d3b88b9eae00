"""Engines without slots: embeddings of a mixed batch, and log-probabilities of its prompts, are those of requests alone."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model
from tests.engine_vllm.conftest import ENGINE_ENVIRONMENT

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.long, pytest.mark.timeout(900)]
RANKS = (4, 8, 16, 3)
PROMPTS = [[5, 9, 77, 12], [8] * 9, [200, 3]]
PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
model, adapters, scheduler, prompts, runner = json.loads(sys.argv[1])
settings = {"chameleon": {"serving": {"lora_backend": "paged"}}} if scheduler else {}
llm = LLM(
    model, runner=runner, convert="embed" if runner == "pooling" else "auto",
    enable_lora=True, max_loras=8, max_lora_rank=16, dtype="float32", enforce_eager=True, max_model_len=64,
    max_num_seqs=16, max_num_batched_tokens=64, scheduler_cls=scheduler, additional_config=settings,
)
loras = [None, *(LoRARequest(path, number, path) for number, path in enumerate(adapters, 1))]
asked = [(lora, {"prompt_token_ids": prompt}) for prompt in prompts for lora in loras]
def answers(some):
    which, given = [lora for lora, _ in some], [prompt for _, prompt in some]
    if runner == "pooling":
        return [out.outputs.embedding for out in llm.embed(given, lora_request=which, use_tqdm=False)]
    params = SamplingParams(max_tokens=2, temperature=0.0, prompt_logprobs=0, detokenize=False)
    found = llm.generate(given, params, lora_request=which, use_tqdm=False)
    return [[p.logprob for told in out.prompt_logprobs[1:] for p in told.values()] for out in found]
together = answers(asked) if scheduler else []
print("ANSWERS", json.dumps([together, [answers([one])[0] for one in asked]]))
"""


@pytest.fixture(scope="module")
def model() -> Path:
    """The tiny Llama, which has a tokenizer, as vLLM wants for embeddings."""
    pytest.importorskip("vllm")
    return ensure_tiny_model(default_cache_dir())


def add_head(folder: Path, model: Path, seed: int) -> None:
    """The output head's part, so that what is asked of it hangs on the adapter."""
    config = json.loads((folder / CONFIG_NAME).read_text())
    config["target_modules"].append("lm_head")
    (folder / CONFIG_NAME).write_text(json.dumps(config))
    rng, rank = np.random.default_rng(seed), config["r"]
    shape = json.loads((model / "config.json").read_text())
    name = "base_model.model.lm_head.lora_{}.weight"
    a = rng.normal(0, 0.3, (rank, shape["hidden_size"])).astype(np.float32)
    b = rng.normal(0, 0.3, (shape["vocab_size"], rank)).astype(np.float32)
    tensors = load_file(folder / WEIGHTS_NAME)
    save_file({**tensors, name.format("A"): a, name.format("B"): b}, folder / WEIGHTS_NAME)


def ask(model: Path, adapters: list[Path], scheduler: str | None, runner: str) -> Any:
    """What is answered to all questions at once, of stock vLLM nothing, and to each alone.

    Stock vLLM ends where a batch of several asks for the log-probabilities of prompts (0.32, on a CPU).
    """
    job = json.dumps([str(model), [str(a) for a in adapters], scheduler, PROMPTS, runner])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, job], env={**os.environ, **ENGINE_ENVIRONMENT},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert lines, done.stderr[-4000:]
    return json.loads(lines[0].removeprefix("ANSWERS "))


@pytest.mark.parametrize("runner", ["pooling", "generate"])
def test_a_mixed_batch_is_answered_as_requests_alone(
    model: Path, tmp_path: Path, runner: str
) -> None:
    """And those as stock vLLM answers them."""
    adapters = [tmp_path / f"a{seed}" for seed in range(len(RANKS))]
    for seed, (folder, rank) in enumerate(zip(adapters, RANKS, strict=True)):
        make_adapter(folder, ModelDims.from_model(model), rank, seed=seed, scale=1.0)
        if runner == "generate" and seed:  # one is without
            add_head(folder, model, seed)
    together, alone = ask(model, adapters, SCHEDULER, runner)
    stock = ask(model, adapters, None, runner)[1]
    for each in (together, alone):
        for found, expected in zip(each, stock, strict=True):
            np.testing.assert_allclose(found, expected, rtol=1e-3, atol=1e-3)
    of_first_prompt = stock[: 1 + len(RANKS)]
    assert len(of_first_prompt) == len({str(np.round(each, 2)) for each in of_first_prompt})
