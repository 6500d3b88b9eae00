"""What the scheduler knows, for pages and tests: frozen values that stay as they were when asked."""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from enum import StrEnum
from typing import Self

from chameleon_lora.policy.memory.device import DeviceCache
from chameleon_lora.policy.memory.entry import Entry, Tier
from chameleon_lora.policy.memory.residency import Residency
from chameleon_lora.policy.plan import DemotionReason, LaneState
from chameleon_lora.policy.queues.lanes import RequestState
from chameleon_lora.policy.request import Adapter, Request


class Place(StrEnum):
    """The fastest place where an adapter is, slowest first. A copy under way does not count."""

    DISK = "disk"
    LOADING = "loading"  # on disk, and being read
    HOST = "host"
    DEVICE = "device"  # in KV blocks
    SLOT = "slot"

    @classmethod
    def of(cls, entry: Entry) -> "Place":
        """Where the adapter is, which may be in use from there. O(1)."""
        is_copied = entry.tier is Tier.SLOT and not entry.is_paged_in
        if is_copied or entry.tier < Tier.HOST:
            return _PLACES[entry.tier]
        return cls.DEVICE if entry.is_on_device else cls.HOST


_PLACES = {
    Tier.DISK: Place.DISK,
    Tier.LOADING: Place.LOADING,
    Tier.SLOT: Place.SLOT,
}


@dataclass(frozen=True, slots=True)
class AdapterView:
    """One adapter. `running` and `queued` count the requests that name it.

    Attributes:
        slot: in which it is, or None.
        blocks: KV blocks that are kept for it; 0 for none.
        is_promoting: the copy into them is under way.
        is_expected: foretold to be asked for soon, though no request names it yet.
        is_leaving: withdrawn while requests still name it; goes when the last one ends.
    """

    adapter: Adapter
    place: Place
    slot: int | None
    blocks: int
    running: int
    queued: int
    is_promoting: bool
    is_pinned: bool
    is_expected: bool
    is_leaving: bool

    @classmethod
    def of(cls, entry: Entry) -> Self:
        """The adapter as it is now. O(1)."""
        return cls(
            adapter=entry.adapter,
            place=Place.of(entry),
            slot=entry.slot,
            blocks=entry.blocks,
            running=entry.running,
            queued=entry.queued,
            is_promoting=entry.promotion is not None,
            is_pinned=entry.is_pinned,
            is_expected=entry.is_expected,
            is_leaving=entry.is_leaving,
        )

    @property
    def is_in_host(self) -> bool:
        """True when its weights are in host memory, complete; what is faster is there too."""
        return self.place not in (Place.DISK, Place.LOADING)

    @property
    def is_on_device(self) -> bool:
        """True when its copy in KV blocks is complete, whether or not it is in a slot besides."""
        return self.blocks > 0 and not self.is_promoting


@dataclass(frozen=True, slots=True)
class RequestView:
    """One unfinished request.

    Attributes:
        output_tokens: predicted output length.
        prefill_tokens: tokens to compute when it is admitted.
        admitted_step: the engine's step in which it was last admitted; None before that.
    """

    request: Request
    output_tokens: int
    prefill_tokens: int
    admitted_step: int | None

    @classmethod
    def of(cls, state: RequestState) -> Self:
        """The request as it is now. O(1)."""
        return cls(
            request=state.request,
            output_tokens=state.output_tokens,
            prefill_tokens=state.prefill_tokens,
            admitted_step=state.admitted_step,
        )


@dataclass(frozen=True, slots=True)
class DeviceView:
    """KV blocks and adapters.

    Attributes:
        held_blocks: that adapters hold.
        busy_blocks: of them, whose adapters run from them (paged engines only).
        limit_blocks: that promotions may fill in all; 0: adapters are kept out.
        headroom_blocks: that promotions leave idle.
        block_bytes: of one block on one rank, over all layers.
        promoting: copies under way.
        promotions: begun so far.
        demotions: adapters that gave blocks back so far, by each reason there is.
    """

    held_blocks: int
    busy_blocks: int
    limit_blocks: int
    headroom_blocks: int
    block_bytes: int
    promoting: int
    promotions: int
    demotions: Mapping[DemotionReason, int]

    @classmethod
    def of(cls, device: DeviceCache, now_s: float) -> Self:
        """The KV cache as adapters have it now. O(1)."""
        return cls(
            held_blocks=device.held_blocks,
            busy_blocks=device.busy_blocks,
            limit_blocks=device.limit_blocks,
            headroom_blocks=device.headroom.blocks(now_s),
            block_bytes=device.block_bytes,
            promoting=device.promoting,
            promotions=device.promotions,
            demotions={reason: device.demotions[reason] for reason in DemotionReason},
        )

    @property
    def limit_bytes(self) -> int:
        """The largest adapter that could be there, were the KV cache idle."""
        return self.limit_blocks * self.block_bytes


@dataclass(frozen=True, slots=True)
class PolicyView:
    """Everything at one instant.

    Attributes:
        adapters: those in a faster place than disk, or on their way there; in the order in which
            they became known.
        disk_adapters: how many others there are, of `disk_bytes` in all.
        host_bytes: of adapters in host memory, or being read.
    """

    lanes: tuple[LaneState, ...]
    adapters: tuple[AdapterView, ...]
    disk_adapters: int
    disk_bytes: int
    device: DeviceView
    host_bytes: int

    @classmethod
    def of(cls, lanes: Iterable[LaneState], residency: Residency, now_s: float) -> Self:
        """Everything as it is now. O(adapters), of which those on disk are only counted."""
        disk, entries = Tier.DISK, residency.entries.values()
        sizes = [entry.adapter.nbytes for entry in entries if entry.tier is disk]
        return cls(
            lanes=tuple(lanes),
            adapters=tuple(AdapterView.of(entry) for entry in entries if entry.tier is not disk),
            disk_adapters=len(sizes),
            disk_bytes=sum(sizes),
            device=DeviceView.of(residency.device, now_s),
            host_bytes=residency.host_bytes,
        )
