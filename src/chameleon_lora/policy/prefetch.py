"""What to bring into host memory next: the adapters that waiting requests lack (PAPER §4.2.3)."""

import heapq
from dataclasses import dataclass

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.entry import Entry, Tier
from chameleon_lora.policy.plan import Load
from chameleon_lora.policy.request import AdapterId
from chameleon_lora.policy.residency import Residency


@dataclass(frozen=True, slots=True)
class PrefetchSettings:
    """Which missing adapters are loaded before their turn.

    Attributes:
        queued: True loads for every waiting request, oldest first; False for the oldest only.
        max_loading: loads under way at one time; more would share one disk.
    """

    queued: bool = True
    max_loading: int = 2

    def __post_init__(self) -> None:
        if self.max_loading < 1:
            raise ConfigError(f"prefetch.max_loading is {self.max_loading}; use 1 or more")


class Prefetcher:
    """The adapters that waiting requests lack, in the order in which the first of them came.

    Attributes:
        blocked: the adapter to load next, if the last plan found no room for it.
    """

    def __init__(self, settings: PrefetchSettings, residency: Residency) -> None:
        self._settings = settings
        self._residency = residency
        self._missing: dict[AdapterId, int] = {}  # sequence of the oldest request that waits for it
        self._oldest_first: list[
            tuple[int, AdapterId]
        ] = []  # heap; may hold entries no longer missing
        self._loading = 0
        self.blocked: Entry | None = None

    def want(self, entry: Entry, sequence: int) -> None:
        """A request waits for this adapter, which is on disk or being loaded."""
        known = self._missing.get(entry.adapter.id)
        if entry.tier is Tier.DISK and (known is None or sequence < known):
            self._missing[entry.adapter.id] = sequence
            heapq.heappush(self._oldest_first, (sequence, entry.adapter.id))

    def unwant(self, entry: Entry) -> None:
        """Nobody waits for this adapter any more."""
        self._missing.pop(entry.adapter.id, None)

    def ended(self) -> None:
        """A load ended, well or not."""
        self._loading -= 1

    def plan(self, now_s: float) -> list[Load]:
        """The loads to begin now."""
        loads: list[Load] = []
        self.blocked = None
        limit = self._settings.max_loading if self._settings.queued else 1
        while self._oldest_first and self._loading < limit:
            sequence, adapter_id = self._oldest_first[0]
            if self._missing.get(adapter_id) == sequence:
                load = self._try_load(adapter_id, sequence, now_s)
                if (
                    load is None
                ):  # the oldest goes first: a smaller one behind it would take its room
                    self.blocked = self._residency.entries[adapter_id]
                    break
                loads.append(load)
            heapq.heappop(self._oldest_first)
        return loads

    def _try_load(self, adapter_id: AdapterId, sequence: int, now_s: float) -> Load | None:
        entry = self._residency.entries[adapter_id]
        evicts = self._residency.try_load(entry, sequence, now_s)
        if evicts is None:
            return None
        del self._missing[adapter_id]
        self._loading += 1
        return Load(adapter_id, evicts)
