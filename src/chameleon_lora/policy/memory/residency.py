"""Which adapter is where: disk -> host memory -> KV blocks and slots (PAPER §4.2).

Host memory has a budget in bytes, slots are counted, KV blocks are lent (`device.py`). Requests run
from slots, or without slots from where adapters lie (ADR 0020, 0028). Everything in a slot or in KV
blocks is in host memory too, so giving either to another adapter costs a copy and never a read.
"""

import random
from collections.abc import Collection
from dataclasses import dataclass, field

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.memory.device import DeviceCache
from chameleon_lora.policy.memory.entry import Entry, EntrySet, Tier
from chameleon_lora.policy.memory.eviction import Evictor, KeepRule, KeepWeights
from chameleon_lora.policy.memory.headroom import DeviceSettings
from chameleon_lora.policy.memory.slots import PagedSlots, Slots, SlotTable
from chameleon_lora.policy.plan import Fault, KvBlocks
from chameleon_lora.policy.request import Adapter, AdapterId

SAMPLED = 64  # an eviction looks at no more adapters than this (ADR 0007)
THOROUGH = 64  # every 64th try looks at all: a large adapter may need more than a sample


@dataclass(frozen=True, slots=True)
class CacheSettings:
    """How adapters are kept in host memory and in slots.

    Attributes:
        keep: which adapters are worth keeping.
        host_bytes: budget of packed adapters in host memory. Unset, there is no bound.
        window_s: sliding window in which uses count as frequency.
        keeps_unused: False takes an adapter off the device when its last request ends, so that only
            its copy in host memory is left (S-LoRA's rule).
    """

    keep: KeepRule = KeepRule.CHAMELEON
    weights: KeepWeights = field(default_factory=KeepWeights)
    host_bytes: int | None = None
    window_s: float = 300.0
    keeps_unused: bool = True

    def __post_init__(self) -> None:
        if self.host_bytes is not None and self.host_bytes < 1:
            raise ConfigError(
                f"cache.host_bytes is {self.host_bytes}; use 1 or more, or leave it out for no bound"
            )
        if self.window_s <= 0:
            raise ConfigError(f"cache.window_s is {self.window_s}; use a time above 0 seconds")


class Residency:
    """Every registered adapter and its tier. Owner: the scheduler; lives as long as the engine.

    Invariants: bytes of LOADING and higher entries stay within the host budget (unless an adapter
    turns out larger than foretold, until `overflow` is called); an entry with a running request, or
    pinned, is never evicted; no slot has two adapters.
    """

    def __init__(
        self,
        settings: CacheSettings,
        slots: SlotTable | None,
        seed: int,
        device: DeviceSettings,
        kv_blocks: KvBlocks,
    ) -> None:
        self._settings = settings
        self._rng = random.Random(seed)
        self._evictor = Evictor(settings.keep, settings.weights, settings.window_s)
        self._unneeded = EntrySet()  # evictable, and no waiting request names it
        self._expected = EntrySet()  # evictable, and not named yet, but foretold to be
        self._needed = EntrySet()  # evictable, but waiting requests name it
        self._homes: dict[AdapterId, EntrySet | None] = {}  # which of them each is in
        self._pinned: dict[AdapterId, Entry] = {}
        self._tries = 0
        self.entries: dict[AdapterId, Entry] = {}
        self.device = DeviceCache(device, kv_blocks, self._evictor, self._rng)
        self.slots: Slots = PagedSlots(self.device) if slots is None else slots
        self.host_bytes = 0

    def register(self, adapter: Adapter) -> Entry:
        """Afterwards the adapter is known, on disk. An id is registered once."""
        assert adapter.id not in self.entries, f"adapter id {adapter.id} registered twice"
        entry = self.entries[adapter.id] = Entry(adapter)
        return entry

    def forget(self, entry: Entry) -> None:
        """Afterwards the adapter, which is on disk and unused, is unknown."""
        assert entry.tier is Tier.DISK and not entry.queued
        del self.entries[entry.adapter.id]
        self._homes.pop(entry.adapter.id, None)
        self._pinned.pop(entry.adapter.id, None)

    def queue(self, entry: Entry, change: int) -> None:
        """Change the number of waiting requests that name the adapter."""
        entry.queued += change
        self._place(entry)

    def start(self, entry: Entry, now_s: float) -> None:
        """A waiting request of the adapter, which is in a slot, runs from now on."""
        assert entry.slot is not None
        if not entry.running:
            self.slots.add_busy(1)
        entry.running += 1
        entry.inflation = self._evictor.inflation
        entry.used(now_s, self._settings.window_s)
        self.queue(entry, -1)

    def stop(self, entry: Entry) -> None:
        """A running request of the adapter ended, or went back to its lane."""
        entry.running -= 1
        if not entry.running:
            self.slots.add_busy(-1)
            is_kept = self._settings.keeps_unused or entry.is_pinned
            if not (is_kept and self.slots.keeps_idle):
                self.slots.remove(entry)
                entry.tier = Tier.HOST
            if not is_kept:
                self.device.drop(entry)
        self._place(entry)

    def pin(self, entry: Entry, *, is_pinned: bool) -> None:
        """Protect the adapter from eviction, or no longer."""
        entry.is_pinned = is_pinned
        if is_pinned:
            self._pinned[entry.adapter.id] = entry
        else:
            self._pinned.pop(entry.adapter.id, None)
        self._place(entry)

    def bytes_if_pinned(self, entry: Entry) -> int:
        """Bytes of all pinned adapters, wherever they are, were this one pinned too. O(pinned)."""
        pinned = {**self._pinned, entry.adapter.id: entry}
        return sum(known.adapter.nbytes for known in pinned.values())

    def expect(self, entry: Entry, *, is_expected: bool) -> None:
        """A request of the adapter is foretold for the time to come, or no longer."""
        entry.is_expected = is_expected
        self._place(entry)

    def why_too_large(self, entry: Entry) -> tuple[str, Fault] | None:
        """The reason if the budget is less than the adapter and those that pins keep. O(pinned)."""
        nbytes, budget = entry.adapter.nbytes, self._settings.host_bytes
        if budget is None:
            return None
        failed = f"Adapter {entry.adapter.name!r} cannot be loaded: "
        if nbytes > budget:
            return f"{failed}its {nbytes} bytes are above cache.host_bytes, {budget}", Fault.CONTENT
        others = (o for o in self._pinned.values() if o is not entry and not o.is_leaving)
        kept = sum(other.adapter.nbytes for other in others if other.tier >= Tier.LOADING)
        if nbytes + kept <= budget:
            return None
        return (
            f"{failed}its {nbytes} bytes find no room beside the {kept} of pinned adapters in "
            f"cache.host_bytes, {budget}; unpin some, or raise it"
        ), Fault.SERVER

    def try_load(self, entry: Entry, sequence: int, now_s: float) -> tuple[AdapterId, ...] | None:
        """Take room for a load and answer whom it evicts; None, and nothing changes, without room.

        Adapters that are expected to be named go only when the unneeded ones do not suffice, and
        those that waiting requests name go last. Of both only those go whose requests all came or
        will come after `sequence`, so that two loads never evict each other in turn (ADR 0013).
        """
        budget = self._settings.host_bytes
        lacking = 0 if budget is None else self.host_bytes + entry.adapter.nbytes - budget
        self._tries += 1
        count = SAMPLED if self._tries % THOROUGH else len(self.entries)
        chosen: list[Entry] = []
        for others in (self._unneeded, self._expected, self._needed):
            if lacking > 0:
                rivals = others.sample(count, self._rng)
                if others is not self._unneeded:
                    rivals = [rival for rival in rivals if rival.oldest > sequence]
                more = self._evictor.cheapest(rivals, lacking, _nbytes, now_s)
                lacking -= sum(victim.adapter.nbytes for victim in more)
                chosen += more
        if lacking > 0:
            return None
        entry.tier = Tier.LOADING
        self.host_bytes += entry.adapter.nbytes
        return tuple(self.evict(victim) for victim in chosen)

    def loaded(self, entry: Entry, nbytes: int, rank: int, *, is_packed: bool = True) -> None:
        """The load is done; size and rank are the true ones. Afterwards it is in host memory."""
        assert entry.tier is Tier.LOADING
        self.host_bytes += nbytes - entry.adapter.nbytes
        entry.adapter = Adapter(entry.adapter.id, entry.adapter.name, rank, nbytes)
        entry.tier = Tier.HOST
        entry.is_packed, entry.is_cold, entry.failure = is_packed, True, None
        self._place(entry)

    def preload(self, entry: Entry, now_s: float) -> None:
        """The adapter is in host memory from the start, if there is room; it was not read for anyone."""
        if self.try_load(entry, 0, now_s) is not None:
            self.loaded(entry, entry.adapter.nbytes, entry.adapter.rank)
            entry.is_cold = False

    def evict(self, entry: Entry) -> AdapterId:
        """Afterwards the adapter is on disk only, its bytes, blocks and slot free. Answers its id."""
        assert not entry.running, f"adapter {entry.adapter.name} is in use"
        assert entry.tier is not Tier.DISK
        self.host_bytes -= entry.adapter.nbytes
        self.slots.remove(entry)
        self.device.drop(entry)
        entry.tier = Tier.DISK
        self._place(entry)
        return entry.adapter.id

    def overflow(self, now_s: float) -> tuple[AdapterId, ...]:
        """Evict adapters that no request names until the budget holds again; answers whom."""
        budget, evicted = self._settings.host_bytes, []
        for unnamed in (self._unneeded, self._expected):
            over = 0 if budget is None else self.host_bytes - budget
            if over > 0:
                found = unnamed.sample(SAMPLED, self._rng)
                chosen = self._evictor.cheapest(found, over, _nbytes, now_s)
                evicted += [self.evict(victim) for victim in chosen]
        return tuple(evicted)

    def try_find_slot(self, avoid: Collection[int], now_s: float) -> int | None:
        """Where an adapter that is in no slot would go at the least cost; None without room."""
        return self.slots.try_find(avoid, lambda found: self._evictor.keep_score(found, now_s))

    def activate(self, entry: Entry, slot: int) -> None:
        """Give the adapter, which is in host memory only, the slot in place of its occupant."""
        assert entry.tier is Tier.HOST
        former = self.slots.at(slot)
        if former is not None:
            assert not former.running
            self.slots.remove(former)
            former.tier = Tier.HOST
        self.slots.put(entry, slot)
        entry.tier = Tier.SLOT
        entry.is_cold = False

    def _place(self, entry: Entry) -> None:
        home = self._home(entry)
        former = self._homes.get(entry.adapter.id)
        if home is not former:
            if former is not None:
                former.put(entry, is_member=False)
            if home is not None:
                home.put(entry, is_member=True)
            self._homes[entry.adapter.id] = home
        self.device.place(entry)

    def _home(self, entry: Entry) -> EntrySet | None:
        """The set of those that may go in which it belongs; None if it may not go."""
        if not entry.is_evictable:
            return None
        if entry.queued:
            return self._needed
        return self._expected if entry.is_expected else self._unneeded


def _nbytes(entry: Entry) -> int:
    return entry.adapter.nbytes
