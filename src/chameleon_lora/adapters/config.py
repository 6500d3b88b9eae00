"""What adapter_config.json promises, and which of its settings vLLM would refuse.

The rules are those of vLLM 0.32 (vllm/lora/peft_helper.py: required fields, positive ranks, refused
PEFT features), told before the engine is asked. Stricter than vLLM in two points: peft_type, if it is
there, must be LORA; and values must have their type (8.0 is a whole number, too). What the keys of a
pattern may be is in `patterns`.
"""

import json
import math
import os
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.adapters.patterns import exact_pattern, key_finder
from chameleon_lora.adapters.untrusted import open_regular, parse_object, quoted, read_exactly
from chameleon_lora.errors import AdapterInvalidError

CONFIG_NAME = "adapter_config.json"
MAX_CONFIG_BYTES = 1 << 20
MAX_DIFFERENT_RANKS = 256
MAX_RANK = 1 << 16

_RETRAIN = "train or export it again without"
_REFUSED_WHEN_SET = {
    "use_dora": ("DoRA", f"{_RETRAIN} use_dora, or merge it into the base model"),
    "lora_bias": ("LoRA bias", f"{_RETRAIN} lora_bias"),
    "alora_invocation_tokens": ("activated LoRA", f"{_RETRAIN} alora_invocation_tokens"),
    "layer_replication": ("replicated layers", f"{_RETRAIN} layer_replication"),
    "use_bdlora": ("block-diagonal LoRA", f"{_RETRAIN} use_bdlora"),
    "use_qalora": ("QALoRA", f"{_RETRAIN} use_qalora"),
}
_REQUIRED = frozenset({"r", "lora_alpha", "target_modules"})  # by them vLLM knows a LoRA adapter
_HEADS = ("classifier", "score")
_BIASES = ("none", "all", "lora_only")  # which of the base model's were trained; it may have none
_PLAIN_INITS = frozenset({"gaussian", "eva", "orthogonal", "mica", "lora_ga"})


@dataclass(frozen=True, slots=True)
class PeftConfig:
    """The fields serving needs. Broken fields have their zero value and a line in `problems`.

    Attributes:
        r: the rank of every module that `rank_pattern` does not name; 0 only with a problem.
        rank_pattern: module name or regular expression -> its own rank, first match wins.
        alpha_pattern: the same for alpha.
        heads: the whole modules that may be saved beside; PEFT names both kinds for any classifier.
        target_modules: one expression such as "all-linear" is a tuple of one.
    """

    r: int
    alpha: float
    base_model: str | None
    target_modules: tuple[str, ...]
    rank_pattern: dict[str, int]
    alpha_pattern: dict[str, float]
    heads: tuple[str, ...]
    problems: tuple[str, ...]

    @property
    def max_rank(self) -> int:
        """The rank a slot needs to hold this adapter."""
        return max([self.r, *self.rank_pattern.values()])

    def rank_finder(self) -> Callable[[str], int]:
        """A function: module -> its rank. For patterns without problems."""
        find, ranks = key_finder(tuple(self.rank_pattern)), self.rank_pattern
        return lambda module: self.r if (key := find(module)) is None else ranks[key]


def read_config_bytes(folder: Path, roots: Iterable[Path] = ()) -> bytes:
    """The raw adapter_config.json, at most MAX_CONFIG_BYTES; with `roots`, a file below one.

    Raises:
        AdapterInvalidError: it is missing, unreadable, outside the roots or above the cap.
    """
    try:
        with open_regular(folder / CONFIG_NAME, roots) as file:
            raw = read_exactly(
                file, min(os.fstat(file.fileno()).st_size, MAX_CONFIG_BYTES + 1), CONFIG_NAME
            )
    except FileNotFoundError as error:
        raise AdapterInvalidError(
            f"{CONFIG_NAME} is missing; way out: copy the whole folder that PEFT's save_pretrained "
            "wrote"
        ) from error
    if len(raw) > MAX_CONFIG_BYTES:
        raise AdapterInvalidError(
            f"{CONFIG_NAME} is above the limit of {MAX_CONFIG_BYTES} bytes; "
            "way out: save the adapter again"
        )
    return raw


def parse_config(raw: bytes) -> PeftConfig:
    """The configuration with everything wrong in it listed.

    Raises:
        AdapterInvalidError: `raw` is not a JSON object.
    """
    fields = parse_object(raw, CONFIG_NAME)
    alpha = fields.get("lora_alpha")
    base_model = fields.get("base_model_name_or_path")
    return PeftConfig(
        r=_rank(fields.get("r")) or 0,
        alpha=float(alpha) if _is_number(alpha) and isinstance(alpha, int | float) else 0.0,
        base_model=base_model if _is_text(base_model) and isinstance(base_model, str) else None,
        target_modules=_names(fields.get("target_modules")) or (),
        rank_pattern=_rank_pattern(fields) or {},
        alpha_pattern=_alpha_pattern(fields) or {},
        heads=_heads(fields) or (),
        problems=(*_broken_fields(fields), *_refused_features(fields)),
    )


def without_expressions(raw: bytes, modules: Sequence[str]) -> bytes:
    """A configuration that says the same of these modules, for whoever runs its expressions.

    For one without problems, so no biases come with it. The bytes themselves if nothing is to be changed.
    """
    config, fields = parse_config(raw), parse_object(raw, CONFIG_NAME)
    has_patterns = bool(config.rank_pattern or config.alpha_pattern)
    if not has_patterns and type(fields["r"]) is int and fields.get("bias", "none") == "none":
        return raw
    changed = {
        "bias": "none",
        "r": config.r,
        "rank_pattern": exact_pattern(config.rank_pattern, modules),
        "alpha_pattern": exact_pattern(config.alpha_pattern, modules),
    }
    return json.dumps(fields | changed).encode()


def _broken_fields(fields: dict[str, object]) -> Iterator[str]:
    kind, is_told = fields.get("peft_type"), fields.keys() >= _REQUIRED
    if not (kind is None and is_told) and not (isinstance(kind, str) and kind.upper() == "LORA"):
        yield (
            f"peft_type is {quoted(kind)}, only 'LORA' can be served; "
            "way out: convert it to a LoRA adapter"
        )
    if _rank(fields.get("r")) is None:
        yield (
            f"r is {quoted(fields.get('r'))}, it must be a whole number from 1 to {MAX_RANK}; "
            f"way out: write the rank it was trained with into {CONFIG_NAME}"
        )
    if not _is_number(fields.get("lora_alpha")):
        yield (
            f"lora_alpha is {quoted(fields.get('lora_alpha'))}, it must be a number; "
            f"way out: write the alpha it was trained with into {CONFIG_NAME}"
        )
    if "target_modules" not in fields or _names(fields["target_modules"]) is None:
        yield (
            f"target_modules is {quoted(fields.get('target_modules', 'missing'))}, vLLM 0.32 needs "
            f"a name or a list of printable names; way out: list the trained modules in {CONFIG_NAME}"
        )
    if _rank_pattern(fields) is None:
        yield (
            f"rank_pattern is {quoted(fields['rank_pattern'])}, it must map names to at most "
            f"{MAX_DIFFERENT_RANKS} different whole numbers from 1 to {MAX_RANK}; "
            "way out: save the adapter again"
        )
    if (fields.get("use_rslora") or False) not in (False, True):  # and 1, as vLLM has it
        yield (
            f"use_rslora is {quoted(fields['use_rslora'])}, it must be true or false; "
            f"way out: write what it was trained with into {CONFIG_NAME}"
        )
    if _alpha_pattern(fields) is None:
        yield (
            f"alpha_pattern is {quoted(fields['alpha_pattern'])}, it must map names to numbers; "
            "way out: save the adapter again"
        )


def _refused_features(fields: dict[str, object]) -> Iterator[str]:
    for key, (feature, way_out) in _REFUSED_WHEN_SET.items():
        if fields.get(key):
            yield f"{key} is {quoted(fields[key])}: vLLM 0.32 refuses {feature}; way out: {way_out}"
    if _heads(fields) is None:
        yield (
            f"modules_to_save is {quoted(fields['modules_to_save'])}: vLLM 0.32 takes whole modules for "
            f"a classification's head alone, a list of {' or '.join(_HEADS)}; "
            f"way out: {_RETRAIN} the others"
        )
    if fields.get("bias", "none") not in _BIASES:
        yield (
            f"bias is {quoted(fields['bias'])}, it must be one of {', '.join(_BIASES)}; "
            f"way out: write what it was trained with into {CONFIG_NAME}"
        )
    init = fields.get("init_lora_weights")
    if isinstance(init, str) and init.lower() not in _PLAIN_INITS:
        yield (
            f"init_lora_weights is {quoted(init)}: vLLM 0.32 refuses starts that change the base "
            "weights; way out: export it with PEFT's path_initial_model_for_weight_conversion"
        )


def _rank(value: object) -> int | None:
    """A rank, also one that is written as 8.0; None for anything else."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return None
    return int(value) if value == value // 1 and 0 < value <= MAX_RANK else None


def _is_text(value: object) -> bool:
    """Is it a string that can be printed and sent: no control signs, no half of a surrogate pair?"""
    return isinstance(value, str) and value.isprintable()


def _is_number(value: object) -> bool:
    if isinstance(value, bool) or not isinstance(value, int | float):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False


def _names(value: object) -> tuple[str, ...] | None:
    if value is None:
        return ()
    if isinstance(value, str) and _is_text(value):
        return (value,)
    if isinstance(value, list) and all(map(_is_text, value)):
        return tuple(value)
    return None


def _heads(fields: dict[str, object]) -> tuple[str, ...] | None:
    value = fields.get("modules_to_save") or []
    if not isinstance(value, list) or not all(name in _HEADS for name in value):
        return None
    return tuple(value)


def _rank_pattern(fields: dict[str, object]) -> dict[str, int] | None:
    value = fields.get("rank_pattern") or {}
    if not isinstance(value, dict):
        return None
    ranks = {key: rank for key, text in value.items() if (rank := _rank(text)) is not None}
    is_sound = len(ranks) == len(value) and len(set(ranks.values())) <= MAX_DIFFERENT_RANKS
    return ranks if is_sound else None


def _alpha_pattern(fields: dict[str, object]) -> dict[str, float] | None:
    value = fields.get("alpha_pattern") or {}
    return value if isinstance(value, dict) and all(map(_is_number, value.values())) else None
