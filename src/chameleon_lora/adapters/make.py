"""Random adapters for Llama-like models: for tests and measurements, not for answers.

Size of the change: A has entries of deviation 1/sqrt(inputs), so A x has the size of x. B has
scale / (alpha/r * sqrt(rank)), so the change of a module's output is `scale` times the size of its
input, whatever the rank. Trained weights are larger than 1/sqrt(inputs): on SmolLM2-135M the
default makes the change 4 to 8 % of each weight's norm, which alters most greedy answers and
keeps them readable.
"""

import json
import math
import struct
import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
import numpy.typing as npt

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.errors import ConfigError

LINEAR_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj")
MAX_RANK = 512  # the largest max_lora_rank vLLM takes
MAX_COUNT = 10_000
ALPHA_PER_RANK = 2
DEFAULT_SCALE = 0.3

_DTYPES = {"float32": ("F32", "<f4"), "float16": ("F16", "<f2"), "bfloat16": ("BF16", "<u2")}
DTYPES = tuple(_DTYPES)

_Array: TypeAlias = npt.NDArray[np.generic]


@dataclass(frozen=True, slots=True)
class ModelDims:
    """The sizes of a Llama-like model's linear layers. `name` goes into the adapter's config."""

    hidden_size: int
    intermediate_size: int
    num_hidden_layers: int
    num_attention_heads: int
    num_key_value_heads: int
    head_dim: int
    name: str | None = None

    @classmethod
    def from_model(cls, model_dir: Path) -> "ModelDims":
        """The sizes that `model_dir`/config.json gives; defaults are those of transformers.

        Raises:
            ConfigError: no such file, no JSON object, or a size is missing or not above 0.
        """
        path = model_dir / "config.json"
        try:
            fields = json.loads(path.read_text(encoding="utf-8"))
        except (OSError, ValueError) as error:
            raise ConfigError(
                f"the model's config.json cannot be read from {str(model_dir)!r} ({error}); "
                "way out: give a model folder in Hugging Face format"
            ) from error
        hidden_size = _size(fields, "hidden_size", path)
        heads = _size(fields, "num_attention_heads", path)
        return cls(
            hidden_size=hidden_size,
            intermediate_size=_size(fields, "intermediate_size", path),
            num_hidden_layers=_size(fields, "num_hidden_layers", path),
            num_attention_heads=heads,
            num_key_value_heads=_size(fields, "num_key_value_heads", path, default=heads),
            head_dim=_size(fields, "head_dim", path, default=hidden_size // heads),
            name=model_dir.absolute().name,
        )

    def module_dims(self, module: str) -> tuple[int, int]:
        """(inputs, outputs) of one of LINEAR_MODULES."""
        attention = self.num_attention_heads * self.head_dim
        keys = self.num_key_value_heads * self.head_dim
        return {
            "q_proj": (self.hidden_size, attention),
            "k_proj": (self.hidden_size, keys),
            "v_proj": (self.hidden_size, keys),
            "o_proj": (attention, self.hidden_size),
            "gate_proj": (self.hidden_size, self.intermediate_size),
            "up_proj": (self.hidden_size, self.intermediate_size),
            "down_proj": (self.intermediate_size, self.hidden_size),
        }[module]


def make_adapter(
    path: Path,
    model_dims: ModelDims,
    rank: int,
    *,
    seed: int,
    scale: float = DEFAULT_SCALE,
    dtype: str = "float32",
    target_modules: Sequence[str] = LINEAR_MODULES,
) -> Path:
    """Write one adapter folder, which appears at `path` whole or not at all; returns `path`.

    The same arguments give the same bytes.

    Raises:
        ConfigError: an argument is out of range, or `path` exists already.
    """
    _check(path, rank, dtype, target_modules)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".making-", dir=path.parent) as staging:
        staged = Path(staging) / path.name
        staged.mkdir()
        config = _peft_config(model_dims, rank, target_modules)
        (staged / CONFIG_NAME).write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        rng = np.random.default_rng(seed)
        weights = _random_weights(rng, model_dims, rank, scale, target_modules)
        _write_safetensors(staged / WEIGHTS_NAME, weights, dtype)
        staged.replace(path)
    return path


def make_adapters(
    root: Path,
    dims: ModelDims,
    ranks: Sequence[int],
    count: int,
    seed: int,
    *,
    dtype: str = "float32",
    target_modules: Sequence[str] = LINEAR_MODULES,
) -> tuple[Path, ...]:
    """Write `count` adapters named adapter-000-r8 and so on, the ranks in rotation.

    Raises:
        ConfigError: an argument is out of range, or one of the folders exists already.
    """
    if not 1 <= count <= MAX_COUNT:
        raise ConfigError(
            f"count is {count}, allowed are 1 to {MAX_COUNT}; way out: make them in several folders"
        )
    if not ranks:
        raise ConfigError("ranks is empty, the least is one; way out: give ranks such as 8,16,32")
    if seed < 0:
        raise ConfigError(f"seed is {seed}, the least is 0; way out: give a seed of 0 or more")
    plan = [(index, ranks[index % len(ranks)]) for index in range(count)]
    paths = [root / f"adapter-{index:03d}-r{rank}" for index, rank in plan]
    for path, (_, rank) in zip(paths, plan, strict=True):
        _check(path, rank, dtype, target_modules)
    for path, (index, rank) in zip(paths, plan, strict=True):
        own_seed = int(np.random.SeedSequence([seed, index]).generate_state(1, np.uint64)[0])
        make_adapter(path, dims, rank, seed=own_seed, dtype=dtype, target_modules=target_modules)
    return tuple(paths)


def _check(path: Path, rank: int, dtype: str, target_modules: Sequence[str]) -> None:
    if not 1 <= rank <= MAX_RANK:
        raise ConfigError(
            f"rank is {rank}, allowed are 1 to {MAX_RANK}; way out: give a rank vLLM can hold"
        )
    if dtype not in _DTYPES:
        raise ConfigError(
            f"dtype is {dtype!r}, allowed are {', '.join(DTYPES)}; way out: give one of them"
        )
    unknown = [module for module in target_modules if module not in LINEAR_MODULES]
    if unknown or not target_modules:
        raise ConfigError(
            f"target_modules is {list(target_modules)!r}, allowed are one or more of "
            f"{', '.join(LINEAR_MODULES)}; way out: give some of them"
        )
    if path.exists():
        raise ConfigError(
            f"{str(path)!r} exists already and is not overwritten; way out: delete it, or give "
            "another folder"
        )


def _size(fields: object, key: str, path: Path, default: int | None = None) -> int:
    found = fields.get(key) if isinstance(fields, dict) else None
    value = default if found is None else found
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ConfigError(
            f"{key} is {value!r} in {str(path)!r}, it must be a whole number above 0; "
            "way out: give the folder of a Llama-like model"
        )
    return value


def _peft_config(dims: ModelDims, rank: int, target_modules: Sequence[str]) -> dict[str, object]:
    return {
        "base_model_name_or_path": dims.name,
        "bias": "none",
        "fan_in_fan_out": False,
        "inference_mode": True,
        "lora_alpha": ALPHA_PER_RANK * rank,
        "lora_dropout": 0.0,
        "modules_to_save": None,
        "peft_type": "LORA",
        "r": rank,
        "target_modules": list(target_modules),
        "task_type": "CAUSAL_LM",
    }


def _random_weights(
    rng: np.random.Generator,
    dims: ModelDims,
    rank: int,
    scale: float,
    target_modules: Sequence[str],
) -> dict[str, npt.NDArray[np.float32]]:
    """PEFT tensor name -> A (rank, inputs) or B (outputs, rank), layer by layer."""
    weights: dict[str, npt.NDArray[np.float32]] = {}
    for layer in range(dims.num_hidden_layers):
        for module in target_modules:
            inputs, outputs = dims.module_dims(module)
            block = "self_attn" if module in LINEAR_MODULES[:4] else "mlp"
            name = f"base_model.model.model.layers.{layer}.{block}.{module}"
            a = rng.standard_normal((rank, inputs), dtype=np.float32)
            b = rng.standard_normal((outputs, rank), dtype=np.float32)
            weights[f"{name}.lora_A.weight"] = a / np.float32(math.sqrt(inputs))
            weights[f"{name}.lora_B.weight"] = b * np.float32(
                scale / (ALPHA_PER_RANK * math.sqrt(rank))
            )
    return weights


def _write_safetensors(
    path: Path, weights: Mapping[str, npt.NDArray[np.float32]], dtype: str
) -> None:
    """Write the table in header.py's docstring; numpy alone, which has no bfloat16 of its own."""
    code, storage = _DTYPES[dtype]
    item_bytes = np.dtype(storage).itemsize
    header: dict[str, object] = {"__metadata__": {"format": "pt"}}
    end = 0
    for name, values in weights.items():
        begin, end = end, end + values.size * item_bytes
        header[name] = {"dtype": code, "shape": list(values.shape), "data_offsets": [begin, end]}
    raw = json.dumps(header, separators=(",", ":")).encode()
    raw += b" " * (-len(raw) % 8)  # weights start aligned
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(raw)) + raw)
        for values in weights.values():
            file.write(_stored(values, dtype).astype(storage, copy=False).tobytes())


def _stored(values: npt.NDArray[np.float32], dtype: str) -> _Array:
    """The values as stored: bfloat16 is the upper half of float32, rounded to even."""
    if dtype != "bfloat16":
        return values
    bits = values.view(np.uint32)
    return (bits + 0x7FFF + ((bits >> 16) & 1)) >> 16
