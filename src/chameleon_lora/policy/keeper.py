"""Ranks adapters by what they are worth keeping: one rule and one clock for every tier."""

from collections.abc import Callable, Sequence

from chameleon_lora.policy.entry import Entry
from chameleon_lora.policy.eviction import Candidate, KeepRule, KeepWeights, keep_values


class Keeper:
    """The keep rule at work. Owner: the residency; tiers share it.

    Attributes:
        inflation: GDSF's clock, the highest keep value that went so far.
    """

    def __init__(self, rule: KeepRule, weights: KeepWeights, window_s: float) -> None:
        self._rule = rule
        self._weights = weights
        self._window_s = window_s
        self.inflation = 0.0

    def worth(self, entries: Sequence[Entry], now_s: float) -> list[float]:
        """How much each is worth keeping; comparable within one call."""
        since_s = now_s - self._window_s
        candidates = [
            Candidate(
                e.adapter.id,
                e.adapter.nbytes,
                e.last_use_s,
                e.uses_since(since_s),
                e.inflation,
                e.next_use_s,
            )
            for e in entries
        ]
        return keep_values(candidates, self._rule, self._weights)

    def cheapest(
        self, entries: Sequence[Entry], lacking: int, size: Callable[[Entry], int], now_s: float
    ) -> list[Entry]:
        """The entries least worth keeping, whose sizes sum up to `lacking`, or all of them."""
        if not entries or lacking <= 0:
            return []
        values = self.worth(entries, now_s)
        chosen: list[Entry] = []
        for value, _, entry in sorted(
            (value, entry.adapter.id, entry) for value, entry in zip(values, entries, strict=True)
        ):
            if lacking <= 0:
                break
            chosen.append(entry)
            lacking -= size(entry)
            if self._rule is KeepRule.GDSF:
                self.inflation = max(self.inflation, value)
        return chosen
