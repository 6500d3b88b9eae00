"""What to bring into host memory next: the adapters that waiting requests lack (PAPER §4.2.3).

After those, if asked to predict, the ones whose next request is expected soon (ADR 0019).
"""

import heapq
from dataclasses import dataclass, field

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.memory.entry import NEVER, NEVER_S, Entry, Tier
from chameleon_lora.policy.memory.forecast import Forecast, ForecastSettings
from chameleon_lora.policy.memory.residency import THOROUGH, Residency
from chameleon_lora.policy.plan import Load
from chameleon_lora.policy.request import AdapterId

MOST_LOADING = 16
RETRY_PINNED_S = 30.0  # a pinned adapter that could not be read is read again after this
SLACK = 16  # stale items in the heap that are not worth a clean-up


@dataclass(frozen=True, slots=True)
class PrefetchSettings:
    """Which missing adapters are loaded before their turn.

    Attributes:
        queued: True loads for every waiting request, oldest first; False for the oldest only.
        max_loading: loads under way at one time; more would share one disk.
        stall_s: a load that takes longer no longer counts among them, for its disk may hang and another
            adapter's not; at most 16 are under way in all.
        predicted: True also loads, and keeps longer, adapters that are expected to be asked for soon;
            of two or more loads at a time one is left to waiting requests.
    """

    queued: bool = True
    max_loading: int = 2
    stall_s: float = 2.0
    predicted: bool = False
    forecast: ForecastSettings = field(default_factory=ForecastSettings)

    def __post_init__(self) -> None:
        if self.max_loading < 1:
            raise ConfigError(f"prefetch.max_loading is {self.max_loading}; use 1 or more")
        if self.stall_s <= 0.0:
            raise ConfigError(f"prefetch.stall_s is {self.stall_s}; use more than 0 seconds")


class Prefetcher:
    """The adapters that waiting requests lack, in the order in which the first of them came.

    Owner: the scheduler; lives as long as the engine.

    Invariant: an adapter is marked as expected from the beginning of its window to the next request
    that names it, or to the end of the window.

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
        self._began_s: dict[AdapterId, float] = {}  # of the loads under way
        self._retry_s: dict[AdapterId, float] = {}  # pinned ones that failed, soonest first
        self._forecast = Forecast(settings.forecast) if settings.predicted else None
        self._looks = 0  # for room for the blocked one, each at a sample of adapters
        self.blocked: Entry | None = None

    def arrived(self, entry: Entry | None, now_s: float) -> None:
        """A request came in for this adapter or, with None, for the base model."""
        if self._forecast is not None and entry is not None and not entry.is_leaving:
            self._forecast.arrived(entry.adapter.id, now_s)
            if entry.is_expected:
                self._residency.expect(entry, is_expected=False)

    def withdrawn(self, entry: Entry) -> None:
        """No request will name this adapter any more."""
        if self._forecast is not None:
            self._forecast.forget(entry.adapter.id)
            self._residency.expect(entry, is_expected=False)

    def want(self, entry: Entry, sequence: int) -> None:
        """A request waits for this adapter, which is on disk or being loaded, or can never be."""
        known = self._missing.get(entry.adapter.id)
        is_to_come = entry.tier is Tier.DISK and not entry.is_hopeless
        if is_to_come and (known is None or sequence < known):
            self._missing[entry.adapter.id] = sequence
            heapq.heappush(self._oldest_first, (sequence, entry.adapter.id))
            if len(self._oldest_first) > 2 * len(self._missing) + SLACK:
                self._oldest_first = [(oldest, known) for known, oldest in self._missing.items()]
                heapq.heapify(self._oldest_first)

    def pinned(self, entry: Entry) -> None:
        """This adapter was pinned, so it is to be read; or unpinned, which may make room for another."""
        self._looks = 0
        if entry.is_pinned:
            self.want(entry, NEVER)

    def unwant(self, entry: Entry) -> None:
        """No request waits for this adapter any more; a pinned one is to be read all the same."""
        self._looks = 0
        if self._missing.pop(entry.adapter.id, None) is not None:
            self._want_pinned(entry)

    def ended(self, entry: Entry) -> None:
        """This adapter's load ended well."""
        self._looks = 0
        self._began_s.pop(entry.adapter.id, None)
        self._retry_s.pop(entry.adapter.id, None)

    def failed(self, entry: Entry, now_s: float) -> None:
        """This adapter's load failed: if it is pinned, it is tried again later."""
        self.ended(entry)
        if self.blocked is entry:
            self.blocked = None
        if entry.is_pinned:
            self._retry_s[entry.adapter.id] = now_s + RETRY_PINNED_S

    def due_s(self) -> float:
        """When a plan has a load to begin at the earliest, or an end of one to wait for.

        For one without room, plans go on until one of them has looked at every adapter.
        """
        is_waiting = self._missing and (self.blocked is None or self._looks < THOROUGH)
        if self._began_s or is_waiting:
            return 0.0
        retry_s = next(iter(self._retry_s.values()), NEVER_S)
        return retry_s if self._forecast is None else min(retry_s, self._forecast.next_s())

    def plan(self, now_s: float) -> list[Load]:
        """The loads to begin now, the oldest request's first; the entries count as LOADING from here on."""
        self._look_ahead(now_s)
        self._retry(now_s)
        loads: list[Load] = []
        former, self.blocked = self.blocked, None
        while (found := self._first()) is not None:
            sequence, entry = found
            is_guess = sequence == NEVER and not entry.is_pinned
            if not self._may_begin(now_s, is_guess=is_guess):
                break
            load = self._try_load(entry, sequence, now_s)
            if load is not None:
                loads.append(load)
            elif not is_guess:  # the oldest goes first: a smaller one would take its room
                self.blocked = entry
                self._looks = self._looks + 1 if former is entry else 1
                break
            self.unwant(entry)  # of a guess without room too: its request will want it anew
        return loads

    def _look_ahead(self, now_s: float) -> None:
        """Mark who is expected from now on, and who no longer."""
        for outlook in () if self._forecast is None else self._forecast.due(now_s):
            entry = self._residency.entries[outlook.adapter_id]
            self._residency.expect(entry, is_expected=outlook.is_expected)
            if outlook.is_expected:
                self.want(entry, NEVER)

    def _retry(self, now_s: float) -> None:
        """Want again the pinned ones whose last failure is long enough ago."""
        while self._retry_s and (due := next(iter(self._retry_s.items())))[1] <= now_s:
            del self._retry_s[due[0]]
            entry = self._residency.entries.get(due[0])
            if entry is not None:
                self._want_pinned(entry)

    def _want_pinned(self, entry: Entry) -> None:
        if entry.is_pinned and not entry.is_leaving and entry.adapter.id not in self._retry_s:
            self.want(entry, NEVER)

    def _first(self) -> tuple[int, Entry] | None:
        """The next that is still wanted, with the sequence of its oldest request."""
        while self._oldest_first:
            sequence, adapter_id = self._oldest_first[0]
            if self._missing.get(adapter_id) == sequence:
                entry = self._residency.entries[adapter_id]
                if sequence < NEVER or entry.is_pinned or entry.is_expected:
                    return sequence, entry
                self.unwant(entry)
            heapq.heappop(self._oldest_first)
        return None

    def _may_begin(self, now_s: float, *, is_guess: bool) -> bool:
        """Whether one more load may be under way."""
        limit = self._settings.max_loading if self._settings.queued else 1
        if is_guess:
            limit = max(1, limit - 1)
        stall_s = self._settings.stall_s
        moving = sum(now_s - began_s <= stall_s for began_s in self._began_s.values())
        return moving < limit and len(self._began_s) < max(limit, MOST_LOADING)

    def _try_load(self, entry: Entry, sequence: int, now_s: float) -> Load | None:
        evicts = self._residency.try_load(entry, sequence, now_s)
        if evicts is None:
            return None
        self._began_s[entry.adapter.id] = now_s
        return Load(entry.adapter.id, evicts)
