"""Makes the models and adapters that are served: random, the same at each call, kept between calls."""

import json
import os
import tempfile
from collections.abc import Sequence
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path

import torch
from safetensors.torch import save_file
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
        out.mkdir()
        (out / "config.json").write_text(json.dumps(_config(shape)), encoding="utf-8")
        _write_tokenizer(out, shape)
        if has_weights:
            save_file(_weights(shape), out / "model.safetensors", metadata={"format": "pt"})
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
        workers = min(os.cpu_count() or 1, len(missing))
        with ProcessPoolExecutor(workers) as pool:
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


def _config(shape: Shape) -> dict[str, object]:
    return {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": shape.hidden,
        "intermediate_size": shape.intermediate,
        "num_hidden_layers": shape.layers,
        "num_attention_heads": shape.heads,
        "num_key_value_heads": shape.kv_heads,
        "head_dim": shape.hidden // shape.heads,
        "vocab_size": shape.vocabulary,
        "max_position_embeddings": shape.context_tokens,
        "hidden_act": "silu",
        "rms_norm_eps": 1e-5,
        "rope_theta": 500_000.0,
        "tie_word_embeddings": False,
        "torch_dtype": shape.dtype,
        "bos_token_id": 0,
        "eos_token_id": 1,
    }


def _write_tokenizer(folder: Path, shape: Shape) -> None:
    words = {f"t{number}": number for number in range(shape.vocabulary)}
    tokenizer = Tokenizer(models.WordLevel(words, unk_token="t2"))
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {
        "tokenizer_class": "PreTrainedTokenizerFast",
        "bos_token": "t0",
        "eos_token": "t1",
        "unk_token": "t2",
        "model_max_length": shape.context_tokens,
    }
    (folder / "tokenizer_config.json").write_text(json.dumps(config), encoding="utf-8")


def _weights(shape: Shape) -> dict[str, torch.Tensor]:
    """Random ones that keep the size of what passes, and a head that prefers some tokens clearly."""
    generator = torch.Generator().manual_seed(SEED)
    dtype = {"bfloat16": torch.bfloat16, "float32": torch.float32}[shape.dtype]

    def drawn(rows: int, columns: int, deviation: float) -> torch.Tensor:
        return (torch.randn((rows, columns), generator=generator) * deviation).to(dtype)

    kv = shape.kv_heads * shape.hidden // shape.heads
    sizes = {
        "self_attn.q_proj": (shape.hidden, shape.hidden),
        "self_attn.k_proj": (kv, shape.hidden),
        "self_attn.v_proj": (kv, shape.hidden),
        "self_attn.o_proj": (shape.hidden, shape.hidden),
        "mlp.gate_proj": (shape.intermediate, shape.hidden),
        "mlp.up_proj": (shape.intermediate, shape.hidden),
        "mlp.down_proj": (shape.hidden, shape.intermediate),
    }
    found = {
        "model.embed_tokens.weight": drawn(shape.vocabulary, shape.hidden, 1.0),
        "lm_head.weight": drawn(shape.vocabulary, shape.hidden, 0.1),
        "model.norm.weight": torch.ones(shape.hidden, dtype=dtype),
    }
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}"
        for name, (rows, columns) in sizes.items():
            found[f"{prefix}.{name}.weight"] = drawn(rows, columns, columns**-0.5)
        for name in ("input_layernorm", "post_attention_layernorm"):
            found[f"{prefix}.{name}.weight"] = torch.ones(shape.hidden, dtype=dtype)
    return found
