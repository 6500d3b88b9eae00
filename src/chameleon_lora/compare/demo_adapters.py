"""The demo's adapters: random, made once, kept in the user's cache."""

import tempfile
from pathlib import Path

from chameleon_lora.adapters.make import ModelDims, make_adapter

RANKS = (4, 8, 16)
"""Small, because CPU LoRA pays for the largest rank at every token."""

TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The attention projections, which the paper's adapters change (section 5)."""


def ensure_adapters(model_dir: Path, cache_dir: Path, count: int) -> Path:
    """A folder with `count` adapters for the model, each in a subfolder of its name."""
    ranks_word = "-".join(str(rank) for rank in RANKS)
    target = cache_dir / f"{model_dir.name}-{count}-adapters-r{ranks_word}"
    if target.is_dir():
        return target
    dims = ModelDims.from_model(model_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".making-") as scratch:
        out = Path(scratch) / "adapters"
        for index in range(count):
            rank = RANKS[index % len(RANKS)]
            path = out / f"adapter-{index:03d}-r{rank}"
            make_adapter(path, dims, rank, seed=index, target_modules=TARGET_MODULES)
        out.rename(target)
    return target


def adapter_names(adapters_dir: Path) -> tuple[str, ...]:
    """The adapters in the folder, in order of their names, which is the order they were made in."""
    return tuple(sorted(path.parent.name for path in adapters_dir.glob("*/adapter_config.json")))
