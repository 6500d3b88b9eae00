"""A batch of many adapters, each used where it lies, answers as models with each adapter's weights merged in."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.make import LINEAR_MODULES, ModelDims, make_adapter
from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.measure.offline import (
    OfflineJob,
    OfflineQuestion,
    Wave,
    run_offline,
)
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]
RANKS = (1, 2, 4, 7, 8, 12, 16, 24, 64)
TARGETS = (LINEAR_MODULES, ("q_proj", "v_proj"), ("k_proj", "down_proj"), ("gate_proj", "o_proj"))
ADAPTERS, BASE, TOKENS = 64, 4, 8
PROMPT = [17, 301, 44, 250, 9, 123, 77]
LEAST_GAP = 1e-3
"""Between the two largest logits; where it is smaller, rounding may choose the other token."""
ENGINE: dict[str, Any] = {
    "max_loras": 2,
    "max_lora_rank": 64,
    "max_num_seqs": ADAPTERS + BASE,
    "max_num_batched_tokens": 1024,
    "max_model_len": 64,
}


@pytest.fixture(scope="module")
def model() -> Path:
    """The tiny Llama, of two layers."""
    pytest.importorskip("vllm")
    return ensure_tiny_model(default_cache_dir(), 2)


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """64 of nine ranks and four sets of layers, strong enough to change what is said."""
    root, dims = tmp_path_factory.mktemp("adapters"), ModelDims.from_model(model)
    return [
        make_adapter(
            root / f"a{seed}",
            dims,
            RANKS[seed % len(RANKS)],
            seed=seed,
            scale=1.0,
            target_modules=TARGETS[seed % len(TARGETS)],
        )
        for seed in range(ADAPTERS)
    ]


@pytest.fixture(scope="module")
def merged(model: Path, adapters: list[Path]) -> list[list[int]]:
    """transformers' greedy tokens, up to where two are as likely; the base model's last."""
    import torch
    import transformers

    plain = transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()
    weights = {name: tensor.clone() for name, tensor in plain.state_dict().items()}
    found = []
    for folder in [*adapters, None]:
        changed = {} if folder is None else merged_weights(weights, folder)
        plain.load_state_dict({**weights, **changed})
        with torch.no_grad():
            found.append(greedy(plain))
    return found


def merged_weights(weights: dict[str, Any], folder: Path) -> dict[str, Any]:
    """W + alpha / r * B @ A of each matrix that the adapter has."""
    from safetensors.torch import load_file

    config = json.loads((folder / CONFIG_NAME).read_text())
    scaling, lora = config["lora_alpha"] / config["r"], load_file(folder / WEIGHTS_NAME)
    begin, end = "base_model.model.", ".lora_A.weight"
    names = [name.removesuffix(end) for name in lora if name.endswith(end)]
    return {
        f"{name.removeprefix(begin)}.weight": weights[f"{name.removeprefix(begin)}.weight"]
        + scaling * lora[f"{name}.lora_B.weight"] @ lora[f"{name}{end}"]
        for name in names
    }


def greedy(model: Any) -> list[int]:
    """The tokens after PROMPT, as many as there is no doubt about."""
    import torch

    tokens = list(PROMPT)
    for _ in range(TOKENS):
        first, second = model(torch.tensor([tokens])).logits[0, -1].topk(2)
        if first[0] - first[1] < LEAST_GAP:
            break
        tokens.append(int(second[0]))
    return tokens[len(PROMPT) :]


@pytest.mark.parametrize(
    "ranks",
    [
        {},
        pytest.param(
            {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"},
            marks=pytest.mark.long,
        ),
    ],
    ids=["one-rank", "two-ranks"],
)
def test_64_adapters_in_one_batch_answer_as_merged_weights(
    model: Path, adapters: Sequence[Path], merged: list[list[int]], ranks: dict[str, Any]
) -> None:
    """Alone in the batch, then with base requests between them."""
    asked = [str(folder) for folder in adapters]
    waves = [
        [OfflineQuestion(prompt=PROMPT, adapter=name, tokens=TOKENS) for name in names]
        for names in (asked, [*asked[:32], *[None] * BASE, *asked[32:]])
    ]
    job = OfflineJob(
        model=str(model),
        scheduler=SCHEDULER,
        settings={"serving": {"lora_backend": "paged"}},
        engine={**ENGINE, **ranks},
        waves=[Wave(questions=questions, before="nothing") for questions in waves],
    )
    expected = dict(zip([*asked, None], merged, strict=True))
    assert sum(map(len, merged)) > 0.9 * TOKENS * len(merged)
    assert len(merged) * 0.9 < len({tuple(tokens) for tokens in merged})
    for questions, wave in zip(waves, run_offline(job)["waves"], strict=True):
        for question, answer in zip(questions, wave["answers"], strict=True):
            sure = expected[question["adapter"]]
            assert sure == answer["tokens"][: len(sure)], question["adapter"]
