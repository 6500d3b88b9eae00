"""Which adapters are in the engine's slots, one in each; or that there are none."""

from collections.abc import Callable, Collection, Mapping, Sequence

from chameleon_lora.policy.memory.device import DeviceCache
from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.request import AdapterId

KeepScore = Callable[[Sequence[Entry]], list[float]]


class SlotTable:
    """Who is in which slot. Owner: Residency.

    Invariants: an entry is in the slot `entry.slot`, and only there; `busy` counts the slots whose
    adapter has a running request.

    Attributes:
        keeps_idle: an adapter stays when its last request ends, until another takes its place.
    """

    keeps_idle = True

    def __init__(self, slots: int) -> None:
        self.count = slots
        self._occupants: list[Entry | None] = [None] * slots
        self._idle: list[int] | None = None  # while they stay so
        self._in_use: list[AdapterId] | None = None  # likewise
        self.busy = 0

    def blocks_to_run(self, _entry: Entry) -> int:
        """KV blocks that a request's adapter takes in order to run: none, for it runs from its slot."""
        return 0

    def in_use(self) -> list[AdapterId]:
        """The adapters with a running request, by slot."""
        if self._in_use is None:
            self._in_use = [e.adapter.id for e in self._occupants if e is not None and e.running]
        return self._in_use

    def at(self, slot: int) -> Entry | None:
        """The adapter in a slot."""
        return self._occupants[slot]

    def try_find(self, avoid: Collection[int], keep_score: KeepScore) -> int | None:
        """The slot where a new adapter costs least, or None if each is in use or to be avoided.

        Costs least: a free one, or else it evicts nobody pinned, nobody whom requests wait for, and
        what is least worth keeping.
        """
        if self._idle is None:
            found = enumerate(self._occupants)
            self._idle = [slot for slot, e in found if e is None or not e.running]
        allowed = [slot for slot in self._idle if slot not in avoid] if avoid else self._idle
        if len(allowed) < 2:
            return allowed[0] if allowed else None
        occupants: list[Entry] = []
        for slot in allowed:
            entry = self._occupants[slot]
            if entry is None:
                return slot
            occupants.append(entry)
        occupants = [e for e in occupants if not e.is_pinned] or occupants
        occupants = [e for e in occupants if not e.queued] or occupants
        slots = (e.slot for e in occupants)
        scores = keep_score(occupants)
        return min((s, slot) for s, slot in zip(scores, slots, strict=True) if slot is not None)[1]

    def by_slot(self, left_tokens: Mapping[AdapterId | None, int]) -> list[int]:
        """For each slot, in how many predicted steps nobody will run with it; 0 for idle ones."""
        occupants = self._occupants
        return [left_tokens.get(e.adapter.id, 0) if e is not None else 0 for e in occupants]

    def put(self, entry: Entry, slot: int) -> None:
        """Afterwards the entry is in the slot; the caller removed whoever was there."""
        assert self._occupants[slot] is None
        entry.slot = slot
        self._occupants[slot] = entry

    def remove(self, entry: Entry) -> None:
        """Afterwards the entry is in no slot."""
        if entry.slot is not None:
            self._occupants[entry.slot] = None
            entry.slot = None

    def add_busy(self, change: int) -> None:
        """So many adapters more, or fewer, have a running request."""
        self.busy += change
        self._idle = None
        self._in_use = None


class PagedSlots:
    """No slots: adapters run from where they lie (ADR 0020, 0028). Owner: Residency.

    It answers like a table in which every adapter finds a place. An entry has slot 0, and its KV blocks
    are in use, while requests run with it.
    """

    count = 1
    keeps_idle = False

    def __init__(self, device: DeviceCache) -> None:
        self._device = device
        self._in_use: dict[AdapterId, None] = {}
        self.busy = 0

    def blocks_to_run(self, entry: Entry) -> int:
        """KV blocks that are in use, beside those that are, once a request runs with it."""
        return 0 if entry.running else self._device.blocks_for(entry.adapter.nbytes)

    def in_use(self) -> list[AdapterId]:
        """The adapters with a running request, in the order of their first ones."""
        return list(self._in_use)

    def at(self, _slot: int) -> Entry | None:
        """Nobody has to make way."""
        return None

    def try_find(self, _avoid: Collection[int], _keep_score: KeepScore) -> int | None:
        """There is always a place; memory is counted in KV blocks."""
        return 0

    def by_slot(self, _left_tokens: Mapping[AdapterId | None, int]) -> list[int]:
        """There are no slots to come free."""
        return []

    def put(self, entry: Entry, slot: int) -> None:
        """Requests run with the entry from now on."""
        entry.slot = slot
        self._in_use[entry.adapter.id] = None
        self._device.hold(entry)

    def remove(self, entry: Entry) -> None:
        """No request runs with the entry any more."""
        if entry.slot is not None:
            entry.slot = None
            del self._in_use[entry.adapter.id]
            self._device.release(entry)

    def add_busy(self, change: int) -> None:
        """So many adapters more, or fewer, have a running request."""
        self.busy += change


Slots = SlotTable | PagedSlots
