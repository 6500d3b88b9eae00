"""Adapters used where they lie together with what else vLLM does: each answer is stock vLLM's."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model
from tests.engine_vllm.conftest import ENGINE_ENVIRONMENT

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]
RANKS = (4, 8, 16, 3, 12, 16)
PROGRAM = """
import json, sys
from vllm import LLM, SamplingParams
from vllm.lora.request import LoRARequest
from vllm.sampling_params import StructuredOutputsParams
model, adapters, scheduler, guesses = json.loads(sys.argv[1])
arguments = {"max_num_batched_tokens": 48, "enable_chunked_prefill": True, "enable_prefix_caching": bool(scheduler)}
if scheduler:
    arguments |= {"scheduler_cls": scheduler, "additional_config": {"chameleon": {"serving": {"lora_backend": "paged"}}}}
if guesses:
    arguments["max_num_batched_tokens"] = 128
    arguments["speculative_config"] = {"method": "ngram", "num_speculative_tokens": 3, "prompt_lookup_max": 3}
llm = LLM(
    model, enable_lora=True, max_loras=7, max_lora_rank=16, dtype="float32", enforce_eager=True,
    max_model_len=128, max_num_seqs=16, block_size=32, disable_log_stats=False, **arguments,
)
loras = [None, *(LoRARequest(path, number, path) for number, path in enumerate(adapters, 1))]
long = [7 + n * 31 % 400 for n in range(70)]
prompts = [[5, 9, 77, 12] * 6, long, long[:40] + [3, 4]]
asked = [(lora, {"prompt_token_ids": prompt}) for prompt in prompts for lora in loras]
form = StructuredOutputsParams(regex="(ab|cd|ef|gh|ij|kl)(0|1|2|3|4|5|6|7|8|9)+")
free = SamplingParams(max_tokens=10, temperature=0.0, ignore_eos=True)
formed = SamplingParams(max_tokens=10, temperature=0.0, structured_outputs=form)
def answers(params, at_once):
    found = []
    for start in range(0, len(asked), at_once):
        some = asked[start : start + at_once]
        loras, given = [lora for lora, _ in some], [prompt for _, prompt in some]
        found += llm.generate(given, params, lora_request=loras, use_tqdm=False)
    return [list(out.outputs[0].token_ids) for out in found], sum(out.num_cached_tokens or 0 for out in found)
at_once = len(asked) if scheduler else 1
told, _ = answers(free, at_once)
again, cached = answers(free, at_once)
accepted = sum(m.value for m in llm.get_metrics() if m.name == "vllm:spec_decode_num_accepted_tokens")
print("ANSWERS", json.dumps([told, again, answers(formed, at_once)[0], cached > 0, accepted > 0]))
"""


@pytest.fixture(scope="module")
def model() -> Path:
    """The tiny Llama, which has a tokenizer."""
    pytest.importorskip("vllm")
    return ensure_tiny_model(default_cache_dir())


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Of several ranks, some of few layers, strong enough to change what is said."""
    root, dims = tmp_path_factory.mktemp("adapters"), ModelDims.from_model(model)
    targets = [
        ("q_proj", "k_proj", "v_proj"),
        ("o_proj", "down_proj"),
        ("q_proj", "up_proj", "o_proj"),
    ]
    return [
        str(make_adapter(root / f"a{n}", dims, rank, seed=n, scale=1.0, target_modules=targets[n % 3]))
        for n, rank in enumerate(RANKS)
    ]  # fmt: skip


@pytest.fixture(scope="module")
def stock(model: Path, adapters: list[str]) -> list[Any]:
    """Stock vLLM's answers, one request after the other."""
    return run(model, adapters, None)


def run(
    model: Path, adapters: list[str], scheduler: str | None, *, guesses: bool = False
) -> list[Any]:
    """What is told twice, what with a form to keep to, whether prompts were cached and guesses right."""
    job = json.dumps([str(model), adapters, scheduler, guesses])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, job], env={**os.environ, **ENGINE_ENVIRONMENT},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert lines, done.stderr[-4000:]
    found: list[Any] = json.loads(lines[0].removeprefix("ANSWERS "))
    return found


@pytest.mark.parametrize("guesses", [False, pytest.param(True, marks=pytest.mark.long)])
def test_answers_are_stock_vllms(
    model: Path, adapters: list[str], stock: list[Any], guesses: bool
) -> None:
    """All in one batch: prompts in chunks, then out of the prefix cache; with a form; with guessed tokens."""
    expected, _, formed, _, _ = stock
    found = run(model, adapters, SCHEDULER, guesses=guesses)
    assert [expected, expected, formed, True, guesses] == found
