"""Simulated time: events in the order of (time, priority, sequence)."""

import heapq
from collections.abc import Callable
from enum import IntEnum

Action = Callable[[float], None]


class Priority(IntEnum):
    """What goes first of what happens at the same time."""

    COPY = 0  # an adapter's copy or read ends
    ARRIVAL = 1  # a client's request comes in
    STEP = 2  # the engine ends a step, or wakes


class Kernel:
    """What is still to happen. Lives with one run; time never runs backwards.

    Of events with the same time and priority the one that was planned first goes first, so a run
    depends on its inputs alone.
    """

    def __init__(self) -> None:
        self.now_s = 0.0
        self._events: list[tuple[float, Priority, int, Action]] = []
        self._sequence = 0

    def plan(self, time_s: float, priority: Priority, action: Action) -> None:
        """Plan an action; it is told the time at which it happens. O(log n)."""
        assert time_s >= self.now_s, f"{time_s} is before now, {self.now_s}"
        self._sequence += 1
        heapq.heappush(self._events, (time_s, priority, self._sequence, action))

    def next_s(self) -> float:
        """When the next event happens; infinity if none is planned."""
        return self._events[0][0] if self._events else float("inf")

    def run(self) -> None:
        """Let everything happen, until nothing is planned any more."""
        events = self._events
        while events:
            self.now_s, _, _, action = heapq.heappop(events)
            action(self.now_s)
