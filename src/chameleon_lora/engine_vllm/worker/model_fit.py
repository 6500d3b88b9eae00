"""Does the model have each layer that an adapter changes?

vLLM walks the model's layers and asks the adapter for each one's weights; what nobody asks for is left
out without a word, as where half of the names have another wrapper's prefix. The answers are then
neither the base model's nor the adapter's.
"""

import logging
from collections.abc import Mapping, Sequence
from typing import Any

from chameleon_lora.adapters.untrusted import first_of, quoted
from chameleon_lora.errors import AdapterUnfitError

_logger = logging.getLogger(f"vllm.{__name__}")


def require_fit(
    adapter_manager: Any, lora_model: Any, adapter: str, *, serves_partial: bool
) -> None:
    """Nothing if the model has each layer that the adapter changes, or may lack some.

    Where it has none at all, `pack` says so.

    Args:
        adapter_manager: vLLM's LoRAModelManager.
        lora_model: a LoRAModel before _create_merged_loras_inplace.
        adapter: its name, for the log, which is told of all that is left out.
        serves_partial: leave out what the model has no layer for.

    Raises:
        AdapterUnfitError: it lacks one, and may not.
    """
    absent, idle = strangers(adapter_manager, lora_model)
    is_partial = len(absent) < len(lora_model.loras) or getattr(lora_model, "modules_to_save", None)
    if absent and is_partial and not serves_partial:
        raise AdapterUnfitError(
            f"its weights for {first_of(absent)} find no layer of this model; way out: serve it "
            "with the model it was trained on, or rename them if this is that model; with "
            "serving.serves_partial they are left out"
        )
    for names, why in ((absent, "the model has no such layer"), (idle, "vLLM adapts none such")):
        if names:
            _logger.warning(
                "Adapter %r: %d of its modules change nothing here, the first is %s: %s",
                adapter, len(names), quoted(names[0]), why,
            )  # fmt: skip


def why_unknown(adapter_manager: Any, modules: Sequence[str], told: str) -> str | None:
    """Why vLLM refused an adapter for its modules' names, in our words; None if that was not why.

    Args:
        adapter_manager: vLLM's LoRAModelManager.
        modules: the adapter's, by the names in its file.
        told: vLLM's words.
    """
    if "expected target modules in" not in told:
        return None
    packs = adapter_manager.packed_modules_mapping
    kinds = adapter_manager.supported_lora_modules
    known = sorted({part for kind in kinds for part in packs.get(kind, [kind])})
    absent = [name for name in modules if name.rpartition(".")[2] not in known]
    if not absent:
        return None
    return (
        f"its weights for {first_of(absent)} are of a kind that this model has no layers of, which "
        f"has {', '.join(known)}; way out: serve it with the model it was trained on, or train it without"
    )


def strangers(adapter_manager: Any, lora_model: Any) -> tuple[list[str], list[str]]:
    """Modules of the adapter that nothing will ask for: those the model has not, and those it has.

    The second kind are layers that vLLM does not adapt: of a vision tower, or left out by
    --lora-target-modules. A layer of another pipeline stage is neither.
    """
    modules = adapter_manager.modules
    wanted = {*modules, *(n for names in adapter_manager.packed_modules.values() for n in names)}
    wanted |= {f"{name}.base_layer" for name in modules if name.endswith(".experts")}
    if adapter_manager.is_pooling_model:  # vLLM looks there for names without it, too
        wanted |= {name.removeprefix("model.") for name in wanted}
    left = [name for name in lora_model.loras if name not in wanted]
    layers = dict(adapter_manager.model.named_modules(remove_duplicate=False)) if left else {}
    elsewhere = [name for name, layer in layers.items() if "MissingLayer" in type(layer).__name__]
    left = [n for n in left if not any(f"{n}.".startswith(f"{stage}.") for stage in elsewhere)]
    packs = adapter_manager.packed_modules_mapping
    idle = {name for name in left if not layers.keys().isdisjoint(_homes(name, packs))}
    return [n for n in left if n not in idle], [n for n in left if n in idle]


def _homes(module: str, packs: Mapping[str, Sequence[str]]) -> list[str]:
    """The layers that a module's weights may belong to: its own, and what it may be packed into."""
    parent, dot, last = module.rpartition(".")
    return [module, *(f"{parent}{dot}{pack}" for pack, parts in packs.items() if last in parts)]
