"""Makes the models and adapters that are served: random, the same at each call, kept between calls."""

import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer, models, pre_tokenizers

from chameleon_lora.adapters.make import ModelDims, make_adapter
from experiments.gpu.scale import TARGET_MODULES, Shape

SEED = 20261126
STRONG = 1.0
"""Size of the proof's adapters: each changes what is said."""


def ensure_model(work: Path, shape: Shape, *, has_weights: bool) -> Path:
    """A Llama's folder: configuration, a tokenizer that names token n "tn", weights where wanted."""
    target = model_folder(work, shape, has_weights=has_weights)
    if target.is_dir():
        return target
    work.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=work, prefix=".making-") as scratch:
        out = Path(scratch) / "model"
        _tokenizer(shape).save_pretrained(out)
        (_model if has_weights else _config)(shape).save_pretrained(out)
        out.rename(target)
    return target


def ensure_adapters(
    work: Path, model: Path, ranks: Sequence[int], dtype: str, *, scale: float
) -> list[Path]:
    """One adapter for each of `ranks`, named in this order; those that are there are kept."""
    root = adapters_of(work, model)
    digits = len(str(len(ranks) - 1))
    wanted = [root / f"a{n:0{digits}}-r{rank}" for n, rank in enumerate(ranks)]
    missing = [
        (path, model, rank, number, scale, dtype)
        for number, (path, rank) in enumerate(zip(wanted, ranks, strict=True))
        if not path.is_dir()
    ]
    if missing:
        with ProcessPoolExecutor(min(os.cpu_count() or 1, len(missing))) as pool:
            list(pool.map(_make, *zip(*missing, strict=True)))
    return wanted


def model_folder(work: Path, shape: Shape, *, has_weights: bool) -> Path:
    """Where a model is, once it is made."""
    return work / f"{shape.name}{'' if has_weights else '-dummy'}"


def adapters_of(work: Path, model: Path) -> Path:
    """Where a model's adapters are, once they are made."""
    return work / f"{model.name}-adapters"


def size_bytes(adapters: Sequence[Path]) -> int:
    """Of all their files."""
    return sum(file.stat().st_size for folder in adapters for file in folder.iterdir())


def _make(path: Path, model: Path, rank: int, seed: int, scale: float, dtype: str) -> None:
    dims = ModelDims.from_model(model)
    make_adapter(
        path, dims, rank, seed=seed, scale=scale, dtype=dtype, target_modules=TARGET_MODULES
    )


def _config(shape: Shape) -> Any:
    return transformers.LlamaConfig(
        vocab_size=shape.vocabulary,
        hidden_size=shape.hidden,
        intermediate_size=shape.intermediate,
        num_hidden_layers=shape.layers,
        num_attention_heads=shape.heads,
        num_key_value_heads=shape.kv_heads,
        max_position_embeddings=shape.context_tokens,
        bos_token_id=0,
        eos_token_id=1,
        architectures=["LlamaForCausalLM"],
    )


def _tokenizer(shape: Shape) -> Any:
    words = {f"t{number}": number for number in range(shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return transformers.PreTrainedTokenizerFast(
        tokenizer_object=tokenizer,
        bos_token="t0",
        eos_token="t1",
        unk_token="t2",
        model_max_length=shape.context_tokens,
    )


def _model(shape: Shape) -> Any:
    """Random weights that keep the size of what passes, and a head that prefers some tokens clearly."""
    torch.manual_seed(SEED)
    model = transformers.LlamaForCausalLM(_config(shape)).to(getattr(torch, shape.dtype))
    deviations = {"model.embed_tokens.weight": 1.0, "lm_head.weight": 0.1}
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.ndim == 2:  # the others are norms, all ones
                weight.normal_(std=deviations.get(name, weight.shape[1] ** -0.5))
    return model
