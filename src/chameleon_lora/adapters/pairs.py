"""Do the tensors of a file make LoRA pairs of the promised rank?

A pair is A (rank, inputs) and B (outputs, rank). One line a kind of fault, with the first tensor
and the count: a hostile file gets no page of its own.
"""

import functools
import re
from collections.abc import Callable, Iterator, Sequence

from chameleon_lora.adapters.base_model import strangers
from chameleon_lora.adapters.config import PeftConfig
from chameleon_lora.adapters.header import TensorEntry
from chameleon_lora.adapters.patterns import pattern_problems
from chameleon_lora.adapters.untrusted import first_of, quoted

_PREFIX = "base_model.model."
_EXAMPLE = f"{_PREFIX}model.layers.0.self_attn.q_proj.lora_A.weight"
_A_ENDINGS = (".lora_A.weight", ".lora_embedding_A")
_B_ENDINGS = (".lora_B.weight", ".lora_embedding_B")
_NAMED = re.compile(r"(\.lora_[AB])\.[^.]+(\.weight)$|(\.lora_embedding_[AB])\.[^.]+$")
_OTHER_BIAS = re.compile(r"\.lora_|(score|classifier)\.bias$")  # of an adapter's own layer
_SKIPPED_ENDINGS = (".embed_tokens.base_layer.weight", ".lm_head.base_layer.weight")
_FUSED_EXPERTS = {".experts.base_layer": ".experts.gate_up_proj", ".experts": ".experts.down_proj"}


def lora_tensors(tensors: Sequence[TensorEntry]) -> tuple[TensorEntry, ...]:
    """The tensors that vLLM loads into a slot; base-model embeddings saved beside them are skipped."""
    return tuple(entry for entry in tensors if entry.name.endswith(_A_ENDINGS + _B_ENDINGS))


def pair_problems(tensors: Sequence[TensorEntry], config: PeftConfig) -> tuple[str, ...]:
    """What is wrong with the tensors as LoRA weights, one line a kind of fault."""
    a_sides = {_module(t.name, _A_ENDINGS): t for t in tensors if t.name.endswith(_A_ENDINGS)}
    b_sides = {_module(t.name, _B_ENDINGS): t for t in tensors if t.name.endswith(_B_ENDINGS)}
    named = [entry.name for entry in tensors if _NAMED.search(entry.name)]
    if named:
        return (_named(named),)
    if not a_sides and not b_sides:
        found = f", but {first_of([t.name for t in tensors])}" if tensors else ""
        return (
            f"the weights hold no LoRA tensors under names as PEFT writes them, which are like {_EXAMPLE!r}"
            f"{found}; way out: save the adapter with PEFT's save_pretrained or its trainer's export to "
            "PEFT, not the base model",
        )
    modules = pattern_names(tensors)
    patterns = (
        *pattern_problems("rank_pattern", config.rank_pattern, modules),
        *pattern_problems("alpha_pattern", config.alpha_pattern, modules),
    )
    if not patterns and config.r:  # a configuration without a rank is its own problem
        rank_of = functools.cache(config.rank_finder())
        patterns = (
            *_wrong_rank(a_sides, rank_of, "lora_A", rank_dimension=0),
            *_wrong_rank(b_sides, rank_of, "lora_B", rank_dimension=1),
        )
    return (
        *_alien(tensors, config),
        *_one_sided(a_sides, b_sides),
        *_not_float(lora_tensors(tensors)),
        *patterns,
    )


def pattern_names(tensors: Sequence[TensorEntry]) -> list[str]:
    """The modules that have LoRA tensors, by the names that patterns are about."""
    modules = (_module(t.name, _A_ENDINGS + _B_ENDINGS) for t in lora_tensors(tensors))
    return list(dict.fromkeys(map(_pattern_name, modules)))


def layer_problems(tensors: Sequence[TensorEntry], layers: frozenset[str]) -> Iterator[str]:
    """That some modules are none of the model's layers, in one line; no line if all are."""
    modules = dict.fromkeys(_module(t.name, _A_ENDINGS + _B_ENDINGS) for t in lora_tensors(tensors))
    absent = strangers(list(modules), layers)
    if absent:
        yield (
            f"its weights for {first_of(absent)} find no layer among the names in the model's files; "
            "way out: serve it with the model it was trained on, or rename them if this is that model"
        )


def _module(name: str, endings: tuple[str, ...]) -> str:
    for ending in endings:
        name = name.removesuffix(ending)
    return name.removeprefix(_PREFIX)


def _named(names: Sequence[str]) -> str:
    """The fault of weights that were saved from PEFT's memory, not by its save_pretrained."""
    right = _NAMED.sub(lambda match: "".join(match.groups("")), names[0])
    return (
        f"tensor {first_of(names)} has an adapter's name in its own; way out: save the adapter with "
        f"PEFT's save_pretrained, or write the file anew with such names as {quoted(right)}"
    )


def head_problems(tensors: Sequence[TensorEntry], config: PeftConfig) -> Iterator[str]:
    """What is wrong with them for an engine whose model does not classify; at most one line."""
    names = [entry.name for entry in tensors if _is_head(entry.name, config)]
    if names:
        yield (
            f"tensor {first_of(names)} is the head of a classifier, and this engine can take none: its "
            "model does not classify, or its vLLM is too old; way out: serve the classifier it was "
            "trained on (--runner pooling, where vLLM does not choose that itself)"
        )


def _is_head(name: str, config: PeftConfig) -> bool:
    *_, module, kind = ("", *name.split("."))
    return module in config.heads and kind in ("weight", "bias")


def _alien(tensors: Sequence[TensorEntry], config: PeftConfig) -> Iterator[str]:
    known = _A_ENDINGS + _B_ENDINGS + _SKIPPED_ENDINGS
    names = [t.name for t in tensors if not t.name.endswith(known) and not _is_head(t.name, config)]
    biases = [name for name in names if name.endswith(".bias") and not _OTHER_BIAS.search(name)]
    if biases:
        yield (
            f"tensor {first_of(biases)} is a bias of the base model that was trained along, and vLLM 0.32 "
            "has one for all adapters; way out: train it again with bias='none', or merge it into the "
            "base model"
        )
    names = [name for name in names if name not in biases]
    if names:
        yield (
            f"tensor {first_of(names)} is no LoRA weight that vLLM 0.32 loads; "
            "way out: save the adapter with PEFT's save_pretrained, without extra modules"
        )


def _one_sided(a_sides: dict[str, TensorEntry], b_sides: dict[str, TensorEntry]) -> Iterator[str]:
    without_b = [name for name in a_sides if name not in b_sides]
    without_a = [name for name in b_sides if name not in a_sides]
    if without_b:
        yield f"module {first_of(without_b)} has lora_A but no lora_B; way out: save it again"
    if without_a:
        yield f"module {first_of(without_a)} has lora_B but no lora_A; way out: save it again"


def _not_float(tensors: Sequence[TensorEntry]) -> Iterator[str]:
    names = [entry.name for entry in tensors if entry.float_name is None]
    if names:
        yield f"tensor {first_of(names)} is not floating point; way out: save it as float16"


def _wrong_rank(
    sides: dict[str, TensorEntry], rank_of: Callable[[str], int], side: str, rank_dimension: int
) -> Iterator[str]:
    wrong = [
        name
        for name, entry in sides.items()
        if len(entry.shape) != 2
        or not _fits(name, entry.shape[rank_dimension], rank_of(_pattern_name(name)))
    ]
    if wrong:
        yield (
            f"{side} of module {first_of(wrong)} has shape {list(sides[wrong[0]].shape)}, the "
            f"configuration promises rank {rank_of(_pattern_name(wrong[0]))}; "
            "way out: copy the adapter_config.json that was saved with these weights"
        )


def _fits(module: str, size: int, rank: int) -> bool:
    if module.endswith(tuple(_FUSED_EXPERTS)):  # PEFT stacks the experts along the rank
        return size > 0 and size % rank == 0
    return size == rank


def _pattern_name(module: str) -> str:
    """The name by which rank_pattern knows the module: fused experts go by their parameter."""
    for ending, parameter in _FUSED_EXPERTS.items():
        if module.endswith(ending):
            return module.removesuffix(ending) + parameter
    return module
