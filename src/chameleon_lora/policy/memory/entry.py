"""One registered adapter, the tier it is in, and sets of them that can be sampled."""

import random
from bisect import bisect_left
from collections.abc import Iterator
from dataclasses import dataclass, field
from enum import IntEnum

from chameleon_lora.policy.plan import Fault
from chameleon_lora.policy.request import Adapter, AdapterId

NEVER = 1 << 62  # after every sequence
RETRY_AFTER_S = 1.0  # after a failure that may pass, for a request that comes later than this
NEVER_S = float("inf")


class Tier(IntEnum):
    """How far an adapter has come. Tiers are inclusive: SLOT implies HOST.

    Beside HOST and SLOT it may have a copy in KV blocks on the device (`Entry.blocks`), which makes
    its way from one to the other short (ADR 0016).
    """

    DISK = 0
    LOADING = 1
    HOST = 2
    SLOT = 3


@dataclass(slots=True, eq=False)
class Entry:
    """One registered adapter. `running` and `queued` count the requests that name it.

    Attributes:
        slot: in which it is, or None.
        oldest: sequence of the request that waits for it since longest; NEVER if none does.
        is_expected: foretold to be asked for soon, though no request names it yet (ADR 0019).
        is_leaving: unregistered while requests still name it; goes when the last one ends.
        is_packed: its host copy is a plain run of bytes, which KV blocks can hold.
        is_cold: it came from disk and has been in no slot since.
        blocks: KV blocks that are kept for it; 0 for none.
        promotion: serial of the copy into them that is under way; None when it is complete.
        is_paged_in: requests run with it from these blocks, for want of slots (ADR 0020).
        inflation: GDSF's clock at the last use.
        failure: why, by what and when its last load failed.
        next_use_s: when it will be asked for next, if a driver that knows the future said so.
        uses_s: times of use inside the frequency window, oldest first.
    """

    adapter: Adapter
    tier: Tier = Tier.DISK
    slot: int | None = None
    running: int = 0
    queued: int = 0
    oldest: int = NEVER
    is_pinned: bool = False
    is_expected: bool = False
    is_leaving: bool = False
    is_packed: bool = False
    is_cold: bool = False
    blocks: int = 0
    promotion: int | None = None
    is_paged_in: bool = False
    last_use_s: float = 0.0
    inflation: float = 0.0
    failure: tuple[str, Fault, float] | None = None
    next_use_s: float = NEVER_S
    uses_s: list[float] = field(default_factory=list)  # an empty deque would take 600 bytes

    @property
    def is_in_host(self) -> bool:
        """True when its weights are in host memory, complete."""
        return self.tier >= Tier.HOST

    @property
    def is_evictable(self) -> bool:
        """True when it is in host memory, no request runs with it and nobody pinned it."""
        return self.is_in_host and not self.running and not self.is_pinned

    @property
    def is_on_device(self) -> bool:
        """True when its copy in KV blocks is complete."""
        return self.blocks > 0 and self.promotion is None

    @property
    def is_hopeless(self) -> bool:
        """True when it can never be loaded."""
        return self.failure is not None and self.failure[1] is Fault.CONTENT

    def standing_failure(self, now_s: float) -> tuple[str, Fault] | None:
        """Why and by what its load failed, if it is not to be read again yet, or never."""
        if self.failure is None:
            return None
        reason, fault, failed_s = self.failure
        stands = self.is_hopeless or now_s < failed_s + RETRY_AFTER_S
        return (reason, fault) if stands else None

    def used(self, now_s: float, window_s: float) -> None:
        """A request begins to run with it; uses that left the frequency window are forgotten."""
        self.last_use_s = now_s
        self.uses_s.append(now_s)
        del self.uses_s[: bisect_left(self.uses_s, now_s - window_s)]

    def uses_since(self, start_s: float) -> int:
        """How often it was used since then, which is no longer ago than the window. O(log n)."""
        return len(self.uses_s) - bisect_left(self.uses_s, start_s)


class EntrySet:
    """A set of entries that is sampled in O(1) an item, in an order that depends on its history only."""

    def __init__(self) -> None:
        self._entries: list[Entry] = []
        self._place: dict[AdapterId, int] = {}

    def __iter__(self) -> Iterator[Entry]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def put(self, entry: Entry, is_member: bool) -> None:
        """Afterwards the entry is in the set, or is not; it may have been so before. O(1)."""
        place = self._place.get(entry.adapter.id)
        if is_member and place is None:
            self._place[entry.adapter.id] = len(self._entries)
            self._entries.append(entry)
        elif not is_member and place is not None:
            del self._place[entry.adapter.id]
            last = self._entries.pop()
            if last is not entry:
                self._entries[place] = last
                self._place[last.adapter.id] = place

    def sample(self, count: int, rng: random.Random) -> list[Entry]:
        """All members if they are no more than `count`, else that many at equal distances.

        With a random first one each is drawn with the same probability, at a tenth of the cost of
        independent draws.
        """
        size = len(self._entries)
        if size <= count:
            return list(self._entries)
        start, stride = rng.randrange(size), size // count
        return [self._entries[(start + i * stride) % size] for i in range(count)]
