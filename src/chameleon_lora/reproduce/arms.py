"""What is compared: the paper's systems, each a setting of the same policy on a model of an engine."""

from dataclasses import dataclass, field, replace
from typing import Any

from chameleon_lora.policy.calibration import LaneSettings
from chameleon_lora.policy.clusters import ClusterSettings, KRule
from chameleon_lora.policy.eviction import KeepRule
from chameleon_lora.policy.residency import CacheSettings
from chameleon_lora.policy.rules import Order
from chameleon_lora.policy.settings import QUEUED_ONLY, PolicySettings, Preset, preset
from chameleon_lora.sim.setup import S_LORA, EngineStyle


@dataclass(frozen=True, slots=True)
class Arm:
    """One system.

    Attributes:
        is_clairvoyant: it is told each request's true output length.
        unlimited_adapters: the memory that adapters need comes on top of the machine's.
        output_limit_tokens: every client's max_tokens; Llama's context is what S-LoRA must expect.
    """

    label: str
    policy: PolicySettings
    style: EngineStyle = field(default=S_LORA)
    is_clairvoyant: bool = False
    unlimited_adapters: bool = False
    output_limit_tokens: int = 2048


def _admitting(policy: PolicySettings, **admission: Any) -> PolicySettings:
    """The policy with other rules of admission."""
    return replace(policy, admission=replace(policy.admission, **admission))


_S_LORA = preset(Preset.SLORA)
_PAPER = replace(preset(Preset.PAPER), device=QUEUED_ONLY)

SLORA = Arm("S-LoRA", _S_LORA)
CHAMELEON = Arm("Chameleon", _PAPER)
CACHE_ONLY = Arm("cache alone", replace(_S_LORA, cache=_PAPER.cache))
SCHEDULER_ONLY = Arm("scheduler alone", replace(_PAPER, cache=_S_LORA.cache))
STATIC_LANES = Arm(
    "static lanes",
    replace(
        _PAPER,
        lanes=LaneSettings(is_static=True, cluster=ClusterSettings(rule=KRule.MIN_WCSS)),
    ),
)
EACH_STEP = Arm("S-LoRA, admitting in each step", _admitting(_S_LORA, every_steps=1))
CACHE_EACH_STEP = Arm(
    "cache alone, admitting in each step", replace(EACH_STEP.policy, cache=_PAPER.cache)
)
SHORT_ANSWERS = Arm("S-LoRA, answers of 512 at most", _S_LORA, output_limit_tokens=512)
PREFETCHING = Arm(
    "Chameleon with prefetch", replace(_PAPER, prefetch=replace(_PAPER.prefetch, predicted=True))
)
SJF = Arm("SJF with aging", _admitting(_S_LORA, order=Order.SJF))
CHUNKED = Arm(
    "FIFO, chunked prefill",
    _admitting(_S_LORA, every_steps=1),
    replace(S_LORA, mixes_prefill=True, batch_tokens=512),
)
BOUND = Arm("clairvoyant, unlimited cache", _PAPER, is_clairvoyant=True, unlimited_adapters=True)
OURS = Arm(
    "ours, prompts of three steps together",
    replace(
        _admitting(PolicySettings(), every_steps=3),
        device=QUEUED_ONLY,
        cache=CacheSettings(KeepRule.DENSITY),
    ),
)
"""Our default, but for an engine whose prompts have steps of their own: gathering a few is worth it."""


def kept_by(rule: KeepRule) -> Arm:
    """Chameleon with another rule of eviction."""
    return Arm(rule.value, replace(_PAPER, cache=replace(_PAPER.cache, keep=rule)))


def on_vllm(policy: PolicySettings, label: str, slots: int) -> Arm:
    """A policy on vLLM's own engine: chunked prefill, adapters in slots padded to the highest rank.

    Padding costs it memory, not arithmetic: as if its kernels skipped what is padded.
    """
    style = EngineStyle(seats=256, batch_tokens=2048, slots=slots, max_rank=128)
    return Arm(f"{label}, {slots} slots", policy, style)
