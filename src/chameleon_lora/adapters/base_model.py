"""The layers of a base model, by the names in its safetensors files, and an adapter's weights for none of them.

An operator's own files, so they are read without the caps that adapters have. Only headers are read.
"""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path

from chameleon_lora.errors import ConfigError

INDEX_NAME = "model.safetensors.index.json"
_EMBEDDING, _TIED_HEAD = "embed_tokens", "lm_head"


def layer_names(model: Path) -> frozenset[str]:
    """Every layer that has a tensor in the files of that folder, and every layer around one.

    Raises:
        ConfigError: there are no safetensors files, or they cannot be read.
    """
    try:
        if (model / INDEX_NAME).exists():
            tensors = list(json.loads((model / INDEX_NAME).read_bytes())["weight_map"])
        else:
            tensors = [name for path in model.glob("*.safetensors") for name in _names_in(path)]
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise ConfigError(
            f"the names of {str(model)!r}'s layers cannot be read ({error}); way out: give the model's "
            "folder with its safetensors files"
        ) from error
    if not tensors:
        raise ConfigError(
            f"{str(model)!r} holds 0 safetensors files, the least is 1; way out: give the model's folder"
        )
    names = {parent for tensor in tensors for parent in _parents(tensor)}
    if any(name.rpartition(".")[2] == _EMBEDDING for name in names):
        names.add(_TIED_HEAD)  # which has no tensor where it is the embedding
    return frozenset(names)


def strangers(modules: Sequence[str], layers: frozenset[str]) -> list[str]:
    """The modules of an adapter that are none of these layers; fused experts go by their layer."""
    return [name for name in modules if name.removesuffix(".base_layer") not in layers]


def _names_in(path: Path) -> list[str]:
    with path.open("rb") as file:
        header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
    return [name for name in header if name != "__metadata__"]


def _parents(tensor: str) -> Iterator[str]:
    parts = tensor.split(".")
    return (".".join(parts[:end]) for end in range(1, len(parts)))
