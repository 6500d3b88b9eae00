"""What an engine's driver and policy know, as plain dicts for pages (JSON, msgpack).

Reading changes nothing. It takes O(adapters + requests), between two steps of the engine.
"""

from collections.abc import Iterable
from typing import Any, assert_never

from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.core.telemetry import DEVICE, TIERS, tier_of
from chameleon_lora.engine_vllm.messages import CPU, GPU
from chameleon_lora.policy.memory.entry import Entry, Tier
from chameleon_lora.policy.plan import DemotionReason, Held, LaneState
from chameleon_lora.policy.request import AdapterId
from chameleon_lora.policy.settings import EngineLimits


def state_of(driver: Driver) -> dict[str, Any]:
    """Everything GET /chameleon/state shows: lanes, tiers, device cache, adapters beyond disk."""
    policy = driver.policy
    entries = policy.residency.entries
    public = _public_names(driver)
    return {
        "lanes": [_lane(driver, state, public) for state in policy.lane_states()],
        "tiers": _tiers(entries.values()),
        "host": {
            "bytes": policy.residency.host_bytes,
            "limit_bytes": policy.settings.cache.host_bytes or None,
        },
        "device": _device(driver),
        "slots": policy.limits.slots,
        "seats": policy.limits.seats,
        "kv_blocks": policy.limits.kv_tokens // policy.limits.block_tokens,
        "adapters": [
            _adapter(entry, public) for entry in entries.values() if entry.tier is not Tier.DISK
        ],
    }


def metrics_of(driver: Driver) -> dict[str, Any]:
    """What the metrics page needs. Adapters are those that new requests can name."""
    policy = driver.policy
    public = _public_names(driver)
    entries = policy.residency.entries
    return {
        "lanes": [
            {
                "lane": state.lane,
                "waiting": state.waiting,
                "loading": state.loading,
                "running": state.running,
                "quota_tokens": state.quota_tokens,
                "used_tokens": state.used_tokens,
                "held": state.held.value if state.held else None,
            }
            for state in policy.lane_states()
        ],
        "adapters": [
            {
                "name": name,
                "level": GPU if tier_of(entry) in (DEVICE, "slot") else CPU,
                "is_pinned": entry.is_pinned,
                "rank": entry.adapter.rank,
            }
            for adapter_id, name in public.items()
            if (entry := entries[adapter_id]).is_in_host
        ],
        "slots": policy.limits.slots,
        "borrowed_blocks": policy.device.held_blocks,
        "borrowed_bytes": policy.device.held_blocks * policy.device.block_bytes,
        "demotions": _demotions(driver),
        "counts": driver.telemetry.counts(),
    }


def explain(held: Held, state: LaneState, limits: EngineLimits) -> str:
    """Why the head of this lane waits, as a sentence for people."""
    match held:
        case Held.SEATS:
            why = f"All {limits.seats} seats (max_num_seqs) are taken."
        case Held.QUOTA:
            used, quota = state.used_tokens, state.quota_tokens
            why = f"Its lane uses {used} of {quota} quota tokens, and no other lane lends more."
        case Held.SLOTS:
            why = f"Adapters in use leave it no room in the {limits.slots} slots (max_loras)."
        case Held.KV_MEMORY:
            why = "The free KV-cache memory does not cover its prompt."
        case Held.BATCH:
            why = "The step's token budget (max_num_batched_tokens) is spent."
        case Held.URGENT:
            why = "An older request was overtaken as often as allowed and goes first."
        case Held.INTERVAL:
            why = "This step admits nobody (admission.every_steps)."
        case _:
            assert_never(held)
    return why


def _public_names(driver: Driver) -> dict[AdapterId, str]:
    """The client's name of each version that new requests get."""
    catalog = driver.catalog
    return {version.id: name for name in catalog.names() if (version := catalog.current(name))}


def _lane(driver: Driver, state: LaneState, public: dict[AdapterId, str]) -> dict[str, Any]:
    adapter = None
    if state.head is not None:
        entry = driver.policy.backlog.states[state.head].entry
        adapter = None if entry is None else _names(entry, public)["name"]
    return {
        "lane": state.lane,
        "waiting": state.waiting,
        "loading": state.loading,
        "running": state.running,
        "quota_tokens": state.quota_tokens,
        "used_tokens": state.used_tokens,
        "head": state.head,
        "head_adapter": adapter,
        "held": state.held.value if state.held else None,
        "why": explain(state.held, state, driver.policy.limits) if state.held else None,
    }


def _tiers(entries: Iterable[Entry]) -> dict[str, dict[str, int]]:
    """Adapters and their bytes, each counted once, at the fastest place."""
    tiers = {tier: {"adapters": 0, "bytes": 0} for tier in TIERS}
    for entry in entries:
        tier = tiers[tier_of(entry)]
        tier["adapters"] += 1
        tier["bytes"] += entry.adapter.nbytes
    return tiers


def _device(driver: Driver) -> dict[str, Any]:
    device = driver.policy.device
    entries = driver.policy.residency.entries.values()
    return {
        "held_blocks": device.held_blocks,
        "limit_blocks": device.limit_blocks,
        "headroom_blocks": device.headroom.last_blocks,
        "block_bytes": device.block_bytes,
        "promoting": sum(entry.promotion > 0 for entry in entries),
        "promotions": device.promotions,
        "demotions": _demotions(driver),
    }


def _demotions(driver: Driver) -> dict[str, int]:
    """Adapters that gave KV blocks back, by each reason there is."""
    demotions = driver.policy.device.demotions
    return {reason.value: demotions[reason] for reason in DemotionReason}


def _adapter(entry: Entry, public: dict[AdapterId, str]) -> dict[str, Any]:
    return {
        **_names(entry, public),
        "rank": entry.adapter.rank,
        "bytes": entry.adapter.nbytes,
        "tier": tier_of(entry),
        "blocks": entry.blocks,
        "is_promoting": entry.promotion > 0,
        "running": entry.running,
        "queued": entry.queued,
        "is_pinned": entry.is_pinned,
        "is_leaving": entry.is_leaving,
        "cell": entry.cell,
    }


def _names(entry: Entry, public: dict[AdapterId, str]) -> dict[str, str]:
    """The client's name, and the version's where it differs; a replaced version has only its own."""
    inner = entry.adapter.name
    name = public.get(entry.adapter.id, inner)
    return {"name": name} if name == inner else {"name": name, "version": inner}
