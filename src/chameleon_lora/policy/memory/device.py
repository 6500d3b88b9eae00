"""Adapters in idle KV-cache memory (PAPER §4.2.1): who is copied there, who gives memory back.

The KV cache belongs to requests. What they leave idle holds copies of adapters, at their exact size;
the engine counts those blocks as free, and whenever it takes one, `reclaim` names who makes room.
Every adapter with a copy here is in host memory too, so giving blocks back loses nothing.
"""

import random
from collections import Counter
from collections.abc import Iterator

from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.memory.eviction import Evictor
from chameleon_lora.policy.memory.groups import HOLDERS, Group, Groups
from chameleon_lora.policy.memory.headroom import DeviceSettings, Headroom
from chameleon_lora.policy.plan import DemotionReason, KvBlocks, Promotion
from chameleon_lora.policy.request import AdapterId

SAMPLED = 64  # an eviction looks at no more adapters than this (ADR 0007)
WISHES = 8  # a promotion, one step in a few, at no more that wish and no more that could go


class DeviceCache:
    """The KV blocks that adapters hold, counted; which blocks they are is the driver's matter.

    Invariants: `held_blocks` is the sum of all entries' `blocks`, and at most `limit_blocks`; who
    holds blocks is in host memory; promotions begin no faster than the settings allow.

    Attributes:
        limit_blocks: that promotions may fill in all, never the headroom; 0 turns promotions off.
        busy_blocks: of those held, whose adapters run from them (paged engines only, ADR 0020).
        headroom: what promotions leave idle.
        promotions: begun so far.
        demotions: blocks given back so far, in adapters, by reason.
    """

    def __init__(
        self,
        settings: DeviceSettings,
        kv_blocks: KvBlocks,
        evictor: Evictor,
        rng: random.Random,
    ) -> None:
        self._settings = settings
        self._evictor = evictor
        self._rng = rng
        self._groups = Groups(rng)
        self._released: list[AdapterId] = []
        self._under_way: dict[int, Entry] = {}  # by serial
        self._next_s = 0.0
        self.block_bytes = kv_blocks.nbytes
        fixed = int(settings.headroom_share * kv_blocks.count)
        self.headroom = Headroom(fixed, kv_blocks.count, settings.prefix_half_life_s)
        self.limit_blocks = kv_blocks.count - fixed if kv_blocks.nbytes else 0
        if settings.max_bytes is not None and kv_blocks.nbytes:
            self.limit_blocks = min(self.limit_blocks, settings.max_bytes // kv_blocks.nbytes)
        self.held_blocks = self.busy_blocks = 0
        self.promotions = 0
        self.demotions: Counter[DemotionReason] = Counter()

    @property
    def promoting(self) -> int:
        """Copies under way."""
        return len(self._under_way)

    def blocks_for(self, nbytes: int) -> int:
        """Blocks that so many bytes fill, the last one perhaps in part; none where blocks hold no adapters."""
        return -(-nbytes // self.block_bytes) if self.block_bytes else 0

    def can_hold(self, nbytes: int) -> bool:
        """True if an adapter of this size could be here, were the KV cache idle."""
        return 0 < nbytes <= self.limit_blocks * self.block_bytes

    def place(self, entry: Entry) -> None:
        """Something about the adapter changed; it is counted where it belongs now."""
        may_hold = entry.is_packed and self.can_hold(entry.adapter.nbytes)
        self._groups.place(entry, may_hold=may_hold)

    def plan(self, now_s: float, free_blocks: int, need_blocks: int) -> tuple[Promotion, ...]:
        """The promotion to begin now, if there is time and memory for one.

        `free_blocks` nobody holds, adapters neither; the batch being formed takes `need_blocks`.
        """
        is_due = now_s >= self._next_s and len(self._under_way) < self._settings.max_promoting
        if not is_due or not self.limit_blocks:
            return ()
        idle = free_blocks - need_blocks - self.headroom.blocks(now_s)
        if idle < 0 and self.headroom.is_raised(now_s):
            self._yield(-idle, now_s)
            return ()
        idle = min(max(0, idle), self.limit_blocks - self.held_blocks)
        for wish in self._wishes(now_s):
            self._next_s = now_s + 1.0 / self._settings.promotions_per_s
            victims = self._outranked(wish, self.blocks_for(wish.adapter.nbytes) - idle, now_s)
            if victims is not None:
                return (self._begin(wish, victims),)
        return ()

    def hold(self, entry: Entry) -> None:
        """A request begins to run with the adapter, from its blocks, which it gets if it has none."""
        if not entry.blocks:
            entry.blocks = self.blocks_for(entry.adapter.nbytes)
            self.held_blocks += entry.blocks
        self._no_longer_under_way(entry)  # it runs as soon as the copy is there
        entry.is_paged_in = True
        self.busy_blocks += entry.blocks
        self.place(entry)

    def release(self, entry: Entry) -> None:
        """Its last request ended: the blocks stay its own until somebody needs them."""
        entry.is_paged_in = False
        self.busy_blocks -= entry.blocks
        self.place(entry)

    def due_s(self) -> float:
        """When a promotion may begin at the earliest; infinity while there is nothing to promote."""
        groups = (Group.WISHED, Group.WISHED_IDLE) if self._settings.fills else (Group.WISHED,)
        is_full = len(self._under_way) >= self._settings.max_promoting
        if not self.limit_blocks or is_full or not any(map(self._groups.has, groups)):
            return float("inf")
        return self._next_s

    def promoted(self, serial: int) -> None:
        """The copy is complete, unless it was called off meanwhile."""
        entry = self._under_way.pop(serial, None)
        if entry is not None:
            entry.promotion = None
            self.place(entry)

    def promotion_failed(self, serial: int, *, is_final: bool) -> None:
        """The copy cannot be made; its adapter stays in host memory, with `is_final` they all do."""
        if is_final:
            self._released += self.reset()
            in_use = self._groups.holders()
            self.limit_blocks, self._groups = 0, Groups(self._rng)
            for user in in_use:
                self.place(user)
        entry = self._under_way.get(serial)
        if entry is not None:
            entry.is_packed = False
            self.drop(entry, DemotionReason.FAILED)

    def drop(self, entry: Entry, reason: DemotionReason = DemotionReason.DROPPED) -> None:
        """Give the adapter's blocks back with the next plan, if it holds any."""
        if entry.blocks:
            self._take_back(entry, reason)
            self._released.append(entry.adapter.id)

    def take_released(self) -> tuple[AdapterId, ...]:
        """Who gave blocks back since the last call, other than by `reclaim`, `reset` and `plan`."""
        released, self._released = tuple(self._released), []
        return released

    def reclaim(self, blocks: int, now_s: float) -> tuple[AdapterId, ...]:
        """Who gives back so many blocks at once, or all there are: those least worth keeping.

        Adapters that waiting requests name go after the others, then those in use, whose slots
        stay, then pinned ones: requests come before any copy.
        """
        chosen: list[AdapterId] = []
        for group in HOLDERS:
            while blocks > 0 and (found := self._can_give(group)):
                for victim in self._evictor.cheapest(found, blocks, _blocks, now_s):
                    blocks -= victim.blocks
                    self._take_back(victim, DemotionReason.DEMAND)
                    chosen.append(victim.adapter.id)
        return tuple(chosen)

    def reset(self) -> tuple[AdapterId, ...]:
        """Everybody from whose blocks no request runs gives them back at once: the cache is emptied."""
        holders = [entry for entry in self._groups.holders() if not entry.is_paged_in]
        for entry in holders:
            self._take_back(entry, DemotionReason.RESET)
        return tuple(entry.adapter.id for entry in holders)

    def _yield(self, blocks: int, now_s: float) -> None:
        """Idle adapters give so many blocks to the prefix cache with the next plan."""
        idle = self._groups.sample(Group.IDLE, WISHES)
        for victim in self._evictor.cheapest(idle, blocks, _blocks, now_s):
            self.drop(victim, DemotionReason.PREFIX)

    def _wishes(self, now_s: float) -> Iterator[Entry]:
        """Whom to promote next: whose request waits longest, else who is most worth keeping.

        The second is for when the first does not fit: a large pinned one may never do.
        """
        urgent = self._candidates(Group.WISHED)
        if urgent:
            yield min(urgent, key=lambda entry: (entry.oldest, entry.adapter.id))
        others = self._candidates(Group.WISHED_IDLE) if self._settings.fills else []
        if others:
            scores = self._evictor.keep_score(others, now_s)
            yield max(zip(scores, others, strict=True), key=lambda item: item[0])[1]

    def _candidates(self, group: Group) -> list[Entry]:
        return [entry for entry in self._groups.sample(group, WISHES) if not entry.is_leaving]

    def _outranked(self, wish: Entry, lacking: int, now_s: float) -> list[Entry] | None:
        """Idle adapters that give `lacking` blocks for the wish; None if too few are worth less."""
        if lacking <= 0:
            return []
        idle = self._groups.sample(Group.IDLE, WISHES)
        if sum(entry.blocks for entry in idle) < lacking:
            return None
        own, *scores = self._evictor.keep_score([wish, *idle], now_s)
        cheaper = [entry for entry, score in zip(idle, scores, strict=True) if score < own]
        if sum(entry.blocks for entry in cheaper) < lacking:
            return None
        return self._evictor.cheapest(cheaper, lacking, _blocks, now_s)

    def _can_give(self, group: Group) -> list[Entry]:
        """Some of a group, without those whose blocks requests run from."""
        found = self._groups.sample(group, SAMPLED)
        return [entry for entry in found if not entry.is_paged_in]

    def _begin(self, wish: Entry, victims: list[Entry]) -> Promotion:
        """The promotion, with the blocks counted for the wish from now on."""
        for victim in victims:
            self._take_back(victim, DemotionReason.REPLACED)
        blocks = self.blocks_for(wish.adapter.nbytes)
        self.promotions += 1
        self.held_blocks += blocks
        wish.blocks, wish.promotion = blocks, self.promotions
        self._under_way[self.promotions] = wish
        self.place(wish)
        evicts = tuple(victim.adapter.id for victim in victims)
        return Promotion(wish.adapter.id, self.promotions, blocks, evicts)

    def _take_back(self, entry: Entry, reason: DemotionReason) -> None:
        self.held_blocks -= entry.blocks
        self._no_longer_under_way(entry)
        self.demotions[reason] += 1
        entry.blocks = 0
        self.place(entry)

    def _no_longer_under_way(self, entry: Entry) -> None:
        if entry.promotion is not None:
            del self._under_way[entry.promotion]
            entry.promotion = None


def _blocks(entry: Entry) -> int:
    return entry.blocks
