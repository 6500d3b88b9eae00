"""Adapters of classifiers, which bring a head of their own: labels are what transformers says."""

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
from tests.engine_vllm.conftest import ENGINE_ENVIRONMENT

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]
LABELS, HIDDEN = 3, 64
PROMPTS = [[5, 9, 77, 12], [8] * 9, [200, 3]]
ORDER = ["base", "bare", "headed1", "headed2", "headed1", "bare", "base"]
PROGRAM = """
import json, sys
from vllm import LLM
from vllm.lora.request import LoRARequest
model, adapters, scheduler, order, prompts = json.loads(sys.argv[1])
llm = LLM(
    model, runner="pooling", skip_tokenizer_init=True, enable_lora=True, max_loras=1, max_lora_rank=16,
    dtype="float32", enforce_eager=True, max_model_len=64, max_num_seqs=8, max_num_batched_tokens=64,
    scheduler_cls=scheduler, additional_config={"chameleon": {}},
)
asked = [{"prompt_token_ids": prompt} for prompt in prompts]
def classify(name):
    number = list(dict.fromkeys(order)).index(name)
    lora = LoRARequest(name, number, f"{adapters}/{name}") if name != "base" else None
    return [out.outputs.probs for out in llm.classify(asked, lora_request=lora, use_tqdm=False)]
print("ANSWERS", json.dumps([classify(name) for name in order]))
"""


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A small classifier of random weights."""
    torch, transformers = pytest.importorskip("torch"), pytest.importorskip("transformers")
    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=256, hidden_size=HIDDEN, intermediate_size=96, num_hidden_layers=2,
        num_attention_heads=2, num_key_value_heads=1, max_position_embeddings=64,
        initializer_range=0.2, num_labels=LABELS, pad_token_id=0,
    )  # fmt: skip
    folder = tmp_path / "model"
    transformers.LlamaForSequenceClassification(config).to(torch.float32).save_pretrained(folder)
    return folder


def make_classifier(folder: Path, model: Path, seed: int, *, with_head: bool) -> None:
    """As PEFT's SEQ_CLS: both heads are named, one is there."""
    make_adapter(folder, ModelDims.from_model(model), 8, seed=seed, scale=1.0)
    if with_head:
        config = json.loads((folder / CONFIG_NAME).read_text())
        config |= {"task_type": "SEQ_CLS", "modules_to_save": ["classifier", "score"]}
        (folder / CONFIG_NAME).write_text(json.dumps(config))
        tensors = load_file(folder / WEIGHTS_NAME)
        head = np.random.default_rng(seed).normal(0, 0.2, (LABELS, HIDDEN)).astype(np.float32)
        save_file({**tensors, "base_model.model.score.weight": head}, folder / WEIGHTS_NAME)


def expected(model: Path, adapter: Path | None) -> list[list[float]]:
    """What transformers says, with the adapter merged into the weights."""
    import torch
    import transformers

    classifier = transformers.LlamaForSequenceClassification.from_pretrained(model).eval()
    if adapter is not None:
        config = json.loads((adapter / CONFIG_NAME).read_text())
        for name, values in load_file(adapter / WEIGHTS_NAME).items():
            module = name.removeprefix("base_model.model.").removesuffix(".weight")
            if module == "score":
                classifier.score.weight.data = torch.from_numpy(values)
            elif module.endswith(".lora_A"):
                b = load_file(adapter / WEIGHTS_NAME)[name.replace("lora_A", "lora_B")]
                weight = classifier.get_submodule(module.removesuffix(".lora_A")).weight
                weight.data += torch.from_numpy(b @ values) * config["lora_alpha"] / config["r"]
    with torch.no_grad():
        logits = [classifier(torch.tensor([prompt])).logits[0] for prompt in PROMPTS]
    return [torch.softmax(each, -1).tolist() for each in logits]


def test_labels_are_transformers_with_heads_and_without(model: Path, tmp_path: Path) -> None:
    """One slot for all, so each takes it from another kind; the base model's head comes back."""
    if not hasattr(pytest.importorskip("vllm.lora.lora_weights"), "LoRAFullModuleWeights"):
        pytest.skip("this vLLM takes no heads from adapters")
    adapters = tmp_path / "adapters"
    for seed, name in enumerate(("bare", "headed1", "headed2")):
        make_classifier(adapters / name, model, seed, with_head=name != "bare")
    job: Any = json.dumps([str(model), str(adapters), SCHEDULER, ORDER, PROMPTS])
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, job], env={**os.environ, **ENGINE_ENVIRONMENT},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [line for line in done.stdout.splitlines() if line.startswith("ANSWERS ")]
    assert lines, done.stderr[-4000:]
    right = {name: expected(model, adapters / name if name != "base" else None) for name in ORDER}
    for name, found in zip(ORDER, json.loads(lines[0].removeprefix("ANSWERS ")), strict=True):
        np.testing.assert_allclose(found, right[name], atol=1e-5, err_msg=name)
    assert not np.allclose(right["headed1"], right["headed2"], atol=1e-2)
