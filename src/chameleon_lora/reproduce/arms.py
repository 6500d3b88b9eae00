"""What is compared: the paper's systems, each a setting of the same policy on a model of an engine."""

from dataclasses import dataclass, field, replace
from typing import Any

from chameleon_lora.policy.settings import (
    QUEUED_ONLY,
    CacheSettings,
    ClusterSettings,
    KeepRule,
    KRule,
    LaneSettings,
    Order,
    PolicySettings,
    Preset,
    preset,
)
from chameleon_lora.sim.setup import S_LORA, EngineStyle


@dataclass(frozen=True, slots=True)
class SystemUnderTest:
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

SLORA = SystemUnderTest("S-LoRA", _S_LORA)
CHAMELEON = SystemUnderTest("Chameleon", _PAPER)
CACHE_ONLY = SystemUnderTest("cache alone", replace(_S_LORA, cache=_PAPER.cache))
SCHEDULER_ONLY = SystemUnderTest("scheduler alone", replace(_PAPER, cache=_S_LORA.cache))
STATIC_LANES = SystemUnderTest(
    "static lanes",
    replace(
        _PAPER,
        lanes=LaneSettings(is_static=True, cluster=ClusterSettings(rule=KRule.MIN_WCSS)),
    ),
)
EACH_STEP = SystemUnderTest("S-LoRA, admitting in each step", _admitting(_S_LORA, every_steps=1))
CACHE_EACH_STEP = SystemUnderTest(
    "cache alone, admitting in each step", replace(EACH_STEP.policy, cache=_PAPER.cache)
)
SHORT_ANSWERS = SystemUnderTest("S-LoRA, answers of 512 at most", _S_LORA, output_limit_tokens=512)
PREFETCHING = SystemUnderTest(
    "Chameleon with prefetch", replace(_PAPER, prefetch=replace(_PAPER.prefetch, predicted=True))
)
SJF = SystemUnderTest("SJF with aging", _admitting(_S_LORA, order=Order.SJF))
CHUNKED = SystemUnderTest(
    "FIFO, chunked prefill",
    _admitting(_S_LORA, every_steps=1),
    replace(S_LORA, mixes_prefill=True, batch_tokens=512),
)
BOUND = SystemUnderTest(
    "clairvoyant, unlimited cache", _PAPER, is_clairvoyant=True, unlimited_adapters=True
)
OURS = SystemUnderTest(
    "ours, prompts of three steps together",
    replace(
        _admitting(PolicySettings(), every_steps=3),
        device=QUEUED_ONLY,
        cache=CacheSettings(KeepRule.DENSITY),
    ),
)
"""Our default, but for an engine whose prompts have steps of their own: gathering a few is worth it."""


def kept_by(rule: KeepRule) -> SystemUnderTest:
    """Chameleon with another rule of eviction."""
    return SystemUnderTest(rule.value, replace(_PAPER, cache=replace(_PAPER.cache, keep=rule)))


def on_vllm(policy: PolicySettings, label: str, slots: int) -> SystemUnderTest:
    """A policy on vLLM's own engine: chunked prefill, adapters in slots padded to the highest rank.

    Padding costs it memory, not arithmetic: as if its kernels skipped what is padded.
    """
    style = EngineStyle(seats=256, batch_tokens=2048, slots=slots, max_rank=128)
    return SystemUnderTest(f"{label}, {slots} slots", policy, style)
