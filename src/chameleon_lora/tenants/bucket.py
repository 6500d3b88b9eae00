"""A token bucket: so much a second in the long run, and a capacity of it at once."""

import math


class Bucket:
    """What may still be taken. Owner: one tenant's allowance. Time never runs backwards in it.

    Invariant: the level never exceeds the capacity. Below zero it is in debt: more was used than had
    been taken before.
    """

    def __init__(self, per_s: float, capacity: float, now_s: float) -> None:
        self.per_s = per_s
        self.capacity = capacity
        self._level = capacity
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """What it holds now."""
        passed_s = max(0.0, now_s - self._at_s)
        return min(self.capacity, self._level + passed_s * self.per_s)

    def wait_s(self, amount: float, now_s: float) -> float:
        """How long until it holds so much; 0 if it does, infinity if it never will."""
        if amount > self.capacity:
            return math.inf
        return max(0.0, (amount - self.level(now_s)) / self.per_s)

    def take(self, amount: float, now_s: float) -> None:
        """Afterwards it holds so much less; a negative amount is given back."""
        self._level = min(self.capacity, self.level(now_s) - amount)
        self._at_s = max(self._at_s, now_s)

    def relimit(self, per_s: float, capacity: float, now_s: float) -> None:
        """Other limits from now on; what was used stays used, as far as the capacity goes."""
        used = self.capacity - self.level(now_s)
        self.per_s, self.capacity = per_s, capacity
        self._level = capacity - used
        self._at_s = max(self._at_s, now_s)
