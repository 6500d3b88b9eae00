"""Every setting of the policy, and the published policies as values of it.

A group of settings and its words stand in the file of the room that obeys them; from outside of the
policy they are named here.
"""

from dataclasses import dataclass, field, replace
from enum import Enum
from typing import assert_never

from chameleon_lora.policy.admission.rules import (
    AdmissionSettings,
    Bypass,
    LaneOrder,
    Order,
    Reserve,
)
from chameleon_lora.policy.estimate.length import LengthSettings, Predictor
from chameleon_lora.policy.estimate.size import SizeRule, SizeSettings
from chameleon_lora.policy.memory.eviction import KeepRule, KeepWeights
from chameleon_lora.policy.memory.forecast import ForecastSettings
from chameleon_lora.policy.memory.headroom import DeviceSettings
from chameleon_lora.policy.memory.prefetch import PrefetchSettings
from chameleon_lora.policy.memory.residency import CacheSettings
from chameleon_lora.policy.memory.slots import SlotTable
from chameleon_lora.policy.plan import KvBlocks
from chameleon_lora.policy.queues.calibration import LaneSettings
from chameleon_lora.policy.queues.clusters import ClusterSettings, KRule

__all__ = [
    "AdmissionSettings",
    "Bypass",
    "CacheSettings",
    "ClusterSettings",
    "DeviceSettings",
    "EngineLimits",
    "ForecastSettings",
    "KRule",
    "KeepRule",
    "KeepWeights",
    "LaneOrder",
    "LaneSettings",
    "LengthSettings",
    "Order",
    "PolicySettings",
    "Predictor",
    "PrefetchSettings",
    "Preset",
    "Reserve",
    "SizeRule",
    "SizeSettings",
    "preset",
]


@dataclass(frozen=True, slots=True)
class PolicySettings:
    """Every setting of the policy; the defaults are Chameleon's.

    Attributes:
        seed: start of the draws among adapters that may be evicted.
    """

    size: SizeSettings = field(default_factory=SizeSettings)
    length: LengthSettings = field(default_factory=LengthSettings)
    lanes: LaneSettings = field(default_factory=LaneSettings)
    admission: AdmissionSettings = field(default_factory=AdmissionSettings)
    cache: CacheSettings = field(default_factory=CacheSettings)
    device: DeviceSettings = field(default_factory=DeviceSettings)
    prefetch: PrefetchSettings = field(default_factory=PrefetchSettings)
    seed: int = 0


@dataclass(frozen=True, slots=True)
class EngineLimits:
    """What the engine has in all.

    Attributes:
        seats: requests it may run at the same time (max_num_seqs).
        slots: places for adapters in a batch (max_loras); 0 if `is_paged`.
        kv_tokens: tokens the whole KV cache holds.
        kv_bytes_per_token: to express adapter bytes in KV tokens.
        block_tokens: tokens of one KV block.
        block_bytes: of one KV block on one rank, over all layers; 0 if none can hold adapters.
        is_paged: adapters run from where they lie, and there are no slots: from KV blocks (ADR 0020), or from
            host memory if `block_bytes` is 0.
    """

    seats: int
    slots: int
    kv_tokens: int
    kv_bytes_per_token: int
    block_tokens: int = 16
    block_bytes: int = 0
    is_paged: bool = False

    def slot_table(self) -> SlotTable | None:
        """The slots, empty; None for an engine without."""
        return None if self.is_paged else SlotTable(self.slots)

    @property
    def kv_blocks(self) -> KvBlocks:
        """The KV cache as adapters see it."""
        return KvBlocks(self.kv_tokens // self.block_tokens, self.block_bytes)


class Preset(Enum):
    """A published policy. Each is a value of `PolicySettings`, run by the same code."""

    CHAMELEON = "chameleon"
    PAPER = "paper"  # Chameleon as published: FIFO lanes, the smallest first
    VLLM = "vllm"  # FCFS, whoever fits passes; LRU; no prefetch
    SLORA = "slora"  # FIFO on worst-case memory, every tenth step; nothing kept after use
    SJF = "sjf"  # uServe: shortest predicted output first, with aging; LRU
    CACHE_ONLY = "cache-only"  # Chameleon's cache and prefetch under vLLM's admission
    SCHEDULER_ONLY = "scheduler-only"  # Chameleon's admission over vLLM's cache


ONE_LANE = LaneSettings(cluster=ClusterSettings(max_lanes=1), has_quotas=False)
HOST_ONLY = DeviceSettings(max_bytes=0)
QUEUED_ONLY = DeviceSettings(headroom_share=0.0, promotions_per_s=1000.0, fills=False)
NO_PREFETCH = PrefetchSettings(queued=False, max_loading=1)
AS_VLLM = AdmissionSettings(
    bypass=Bypass.ANY, squash_limit=0, order=Order.FIFO, overtake_limit=None
)
LRU = CacheSettings(keep=KeepRule.LRU)


AS_SLORA = AdmissionSettings(
    bypass=Bypass.OFF,
    squash_limit=0,
    order=Order.FIFO,
    overtake_limit=None,
    reserve=Reserve.PEAK,
    every_steps=10,
)
AS_PUBLISHED = AdmissionSettings(
    bypass=Bypass.PAPER, order=Order.FIFO, lane_order=LaneOrder.SMALLEST
)


def preset(name: Preset) -> PolicySettings:
    """A published policy as settings; what it does not have is switched off in them."""
    match name:
        case Preset.CHAMELEON:
            made = PolicySettings()
        case Preset.PAPER:
            made = PolicySettings(admission=AS_PUBLISHED)
        case Preset.VLLM:
            made = PolicySettings(
                lanes=ONE_LANE,
                admission=AS_VLLM,
                cache=LRU,
                device=HOST_ONLY,
                prefetch=NO_PREFETCH,
            )
        case Preset.SLORA:
            made = PolicySettings(
                lanes=ONE_LANE,
                admission=AS_SLORA,
                cache=replace(LRU, keeps_unused=False),
                device=QUEUED_ONLY,
                prefetch=NO_PREFETCH,
            )
        case Preset.SJF:
            made = PolicySettings(
                lanes=ONE_LANE,
                admission=replace(AS_VLLM, order=Order.SJF),
                cache=LRU,
                device=HOST_ONLY,
            )
        case Preset.CACHE_ONLY:
            made = PolicySettings(lanes=ONE_LANE, admission=AS_VLLM)
        case Preset.SCHEDULER_ONLY:
            made = PolicySettings(cache=LRU, device=HOST_ONLY, prefetch=NO_PREFETCH)
        case _:
            assert_never(name)
    return made
