"""What an engine's driver and policy know, as plain dicts for pages (JSON, msgpack).

Reading changes nothing. It takes O(adapters + requests), between two steps of the engine.
"""

from typing import Any, assert_never

from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.messages import CPU, GPU
from chameleon_lora.policy.plan import Held, LaneState
from chameleon_lora.policy.request import Adapter, AdapterId
from chameleon_lora.policy.settings import EngineLimits
from chameleon_lora.policy.view import AdapterView, DeviceView, Place, PolicyView


def state_of(driver: Driver) -> dict[str, Any]:
    """Everything GET /chameleon/state shows: lanes, tiers, device cache, adapters beyond disk."""
    view, limits = driver.view(), driver.policy.limits
    names = {known.adapter.id: _names(driver, known.adapter) for known in view.adapters}
    return {
        "lanes": [
            {
                **_lane(state),
                "head": state.head,
                "head_adapter": names[state.head_adapter]["name"]
                if state.head_adapter is not None
                else None,
                "why": explain(state.held, state, limits) if state.held else None,
            }
            for state in view.lanes
        ],
        "tiers": _tiers(view),
        "host": {
            "bytes": view.host_bytes,
            "limit_bytes": driver.policy.settings.cache.host_bytes,
        },
        "device": _device(view.device),
        "slots": None if limits.is_paged else limits.slots,
        "seats": limits.seats,
        "kv_blocks": limits.kv_blocks.count,
        "adapters": [{**names[known.adapter.id], **_adapter(known)} for known in view.adapters],
    }


def metrics_of(driver: Driver) -> dict[str, Any]:
    """What the metrics page needs. Adapters are those that new requests can name."""
    view, limits = driver.view(), driver.policy.limits
    return {
        "lanes": [_lane(state) for state in view.lanes],
        "adapters": [
            {
                "name": name,
                "level": GPU if known.place in (Place.DEVICE, Place.SLOT) else CPU,
                "is_pinned": known.is_pinned,
                "rank": known.adapter.rank,
            }
            for known in view.adapters
            if known.is_in_host and (name := _public_name(driver, known.adapter.id))
        ],
        "mixed": limits.seats if limits.is_paged else limits.slots,
        "borrowed_blocks": view.device.held_blocks,
        "borrowed_bytes": view.device.held_blocks * view.device.block_bytes,
        "demotions": _demotions(view.device),
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


def _public_name(driver: Driver, adapter_id: AdapterId) -> str | None:
    """The client's name of a version that new requests get; None for one that was replaced."""
    version = driver.versions[adapter_id]
    name = version.source.name
    return name if driver.versions.current(name) is version else None


def _lane(state: LaneState) -> dict[str, Any]:
    return {
        "lane": state.lane,
        "waiting": state.waiting,
        "loading": state.loading,
        "running": state.running,
        "quota_tokens": state.quota_tokens,
        "used_tokens": state.used_tokens,
        "held": state.held.value if state.held else None,
    }


def _tiers(view: PolicyView) -> dict[str, dict[str, int]]:
    """Adapters and their bytes, each counted once, at the fastest place."""
    tiers = {place.value: {"adapters": 0, "bytes": 0} for place in Place}
    tiers[Place.DISK.value] = {"adapters": view.disk_adapters, "bytes": view.disk_bytes}
    for known in view.adapters:
        tier = tiers[known.place.value]
        tier["adapters"] += 1
        tier["bytes"] += known.adapter.nbytes
    return tiers


def _device(device: DeviceView) -> dict[str, Any]:
    return {
        "held_blocks": device.held_blocks,
        "limit_blocks": device.limit_blocks,
        "headroom_blocks": device.headroom_blocks,
        "block_bytes": device.block_bytes,
        "promoting": device.promoting,
        "promotions": device.promotions,
        "demotions": _demotions(device),
    }


def _demotions(device: DeviceView) -> dict[str, int]:
    """Adapters that gave KV blocks back, by each reason there is."""
    return {reason.value: count for reason, count in device.demotions.items()}


def _adapter(known: AdapterView) -> dict[str, Any]:
    return {
        "rank": known.adapter.rank,
        "bytes": known.adapter.nbytes,
        "tier": known.place.value,
        "blocks": known.blocks,
        "is_promoting": known.is_promoting,
        "running": known.running,
        "queued": known.queued,
        "is_pinned": known.is_pinned,
        "is_leaving": known.is_leaving,
        "slot": known.slot,
    }


def _names(driver: Driver, adapter: Adapter) -> dict[str, str]:
    """The client's name, and the version's where it differs; a replaced version has only its own."""
    inner = driver.versions[adapter.id].inner_name
    name = _public_name(driver, adapter.id) or inner
    return {"name": name} if name == inner else {"name": name, "version": inner}
