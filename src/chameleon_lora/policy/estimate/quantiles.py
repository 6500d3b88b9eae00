"""A quantile of what requests showed lately, per adapter, begun from that of all requests."""

from array import array
from bisect import bisect_left, insort

from chameleon_lora.policy.request import AdapterId


class RunningQuantile:
    """Two blends, each of the form (n * quantile + w * belief) / (n + w). Lives with an engine.

    The first is over all requests, with `belief`; the second over those of one adapter, with the
    first as its belief. Requests for the base model (adapter None) count as those of one adapter.
    Memory: 16 bytes a value, at most `window` values an adapter and `window` over all.
    """

    def __init__(self, share: float, window: int, belief: float, weight: float) -> None:
        self._share = share
        self._window = window
        self._belief = belief
        self._weight = weight
        self._all = RecentValues(window, share)
        self._of_all = belief  # the blend over all requests
        self._by_adapter: dict[AdapterId | None, RecentValues] = {}

    def expected(self, adapter_id: AdapterId | None) -> float:
        """The blend for this adapter. Changes nothing; O(1)."""
        recent = self._by_adapter.get(adapter_id)
        return self._of_all if recent is None else self._blend(recent, self._of_all)

    def observe(self, adapter_id: AdapterId | None, value: float) -> None:
        """The value counts for this adapter and for all; either's oldest goes when its window is full."""
        recent = self._by_adapter.get(adapter_id)
        if recent is None:
            recent = self._by_adapter[adapter_id] = RecentValues(self._window, self._share)
        recent.add(value)
        self._all.add(value)
        self._of_all = self._blend(self._all, self._belief)

    def forget(self, adapter_id: AdapterId) -> None:
        """This adapter's own values are forgotten; among all requests they stay until they age."""
        self._by_adapter.pop(adapter_id, None)

    def _blend(self, recent: "RecentValues", belief: float) -> float:
        count, weight = len(recent), self._weight
        return (count * recent.quantile + weight * belief) / (count + weight)


class RecentValues:
    """The last `window` values and a quantile of them; `add` searches in O(log window).

    Attributes:
        quantile: the value at `share` * (n + 1) of n in ascending order, between two neighbours in
            proportion, and no less than the first or more than the last. A new value from the same
            source is below it with a probability of about `share`; at 0.5 it is the median.
    """

    __slots__ = ("_arrived", "_oldest", "_share", "_sorted", "_window", "quantile")

    def __init__(self, window: int, share: float) -> None:
        self._window = window
        self._share = share
        self._arrived = array("d")  # a ring once it is full
        self._oldest = 0
        self._sorted = array("d")
        self.quantile = 0.0

    def __len__(self) -> int:
        return len(self._sorted)

    def add(self, value: float) -> None:
        """Takes the value in and, when the window is full, lets the oldest go."""
        ordered, arrived = self._sorted, self._arrived
        if len(arrived) < self._window:
            arrived.append(value)
        else:
            del ordered[bisect_left(ordered, arrived[self._oldest])]
            arrived[self._oldest] = value
            self._oldest = (self._oldest + 1) % self._window
        insort(ordered, value)
        last = len(ordered) - 1
        place = min(max(self._share * (last + 2) - 1.0, 0.0), float(last))
        below = int(place)
        low, high = ordered[below], ordered[min(below + 1, last)]
        self.quantile = low + (place - below) * (high - low)
