"""Which idle adapter is least worth keeping? A rule gives each a keep score; the lowest goes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.memory.entry import Entry

# GDSF: latency of a load in bytes, that is 1 ms at 16 GB/s. A reload takes latency + bytes /
# bandwidth seconds, or (latency * bandwidth + bytes) in units of one byte's transfer (ADR 0006).
GDSF_FIXED_BYTES = 16_000_000


class KeepRule(Enum):
    """What makes an adapter worth keeping."""

    CHAMELEON = "chameleon"  # frequency, recency and size, weighted (paper §4.2)
    FAIR_SHARE = "fair_share"  # the same with equal weights
    LRU = "lru"  # recency
    LFU = "lfu"  # frequency, then recency
    GDSF = "gdsf"  # frequency * reload cost / size, with ageing
    DENSITY = "density"  # frequency per byte, then recency: most hits for the memory
    BELADY = "belady"  # the next use, for drivers that know the future; none that serves does


@dataclass(frozen=True, slots=True)
class KeepWeights:
    """The weights F, R, S of CHAMELEON (paper §4.2); only their ratios matter.

    Attributes:
        frequency: F, of the uses within the window, relative to the most used.
        recency: R, of the time of the last use, between the longest unused and the last used.
        size: S, of the bytes, relative to the largest: what is costly to load again stays.

    Raises:
        ConfigError: a weight is negative, or their sum is zero or not finite.
    """

    frequency: float = 0.45
    recency: float = 0.10
    size: float = 0.45

    def __post_init__(self) -> None:
        weights = (self.frequency, self.recency, self.size)
        if not (min(weights) >= 0.0 and 0.0 < sum(weights) < math.inf):
            raise ConfigError(
                f"the keep weights (frequency, recency, size) are {weights}, but must be at least 0"
                " with a finite sum above 0; the defaults are (0.45, 0.10, 0.45)"
            )


_EQUAL = KeepWeights(1 / 3, 1 / 3, 1 / 3)


def _weighted(entries: Sequence[Entry], uses: Sequence[int], weights: KeepWeights) -> list[float]:
    """F * frequency + R * recency + S * size, each term in [0, 1] (paper §4.2).

    Uses and bytes have a true zero and are divided by the largest; times have none and are
    stretched from oldest to newest (ADR 0006).
    """
    if not entries:
        return []
    sizes = [entry.adapter.nbytes for entry in entries]
    frequency = weights.frequency / max(1, *uses)
    size = weights.size / max(1, *sizes)
    recencies = [weights.recency * recency for recency in _recencies(entries)]
    return [
        frequency * use_count + recency + size * nbytes
        for use_count, recency, nbytes in zip(uses, recencies, sizes, strict=True)
    ]


def _frequencies(entries: Sequence[Entry], uses: Sequence[int]) -> list[float]:
    """The uses within the window, plus up to half a use for recency, so that equals differ."""
    return [count + r / 2 for count, r in zip(uses, _recencies(entries), strict=True)]


def _densities(entries: Sequence[Entry], uses: Sequence[int]) -> list[float]:
    """Uses in as many bytes as the smallest entry has: what its memory earns (ADR 0017)."""
    sizes = [entry.adapter.nbytes for entry in entries]
    smallest = min(sizes, default=0)
    frequencies = _frequencies(entries, uses)
    return [f * smallest / nbytes for f, nbytes in zip(frequencies, sizes, strict=True)]


def _costs(entries: Sequence[Entry], uses: Sequence[int]) -> list[float]:
    """GDSF: the clock at the last use, plus the uses times what a reload costs a byte."""
    return [
        e.inflation + count * (GDSF_FIXED_BYTES + e.adapter.nbytes) / e.adapter.nbytes
        for e, count in zip(entries, uses, strict=True)
    ]


def _recencies(entries: Sequence[Entry]) -> list[float]:
    """0 for the longest unused to 1 for the last used; 0 for all when they are equal."""
    times_s = [entry.last_use_s for entry in entries]
    oldest_s = min(times_s, default=0.0)
    span_s = max(times_s, default=0.0) - oldest_s
    if not span_s:
        return [0.0] * len(times_s)
    return [(time_s - oldest_s) / span_s for time_s in times_s]


class Evictor:
    """The keep rule at work. Owner: the residency; tiers share it.

    Attributes:
        inflation: the highest keep score that went so far. It is GDSF's clock; other rules have no
            use for it, as they have none for the next use.
    """

    def __init__(self, rule: KeepRule, weights: KeepWeights, window_s: float) -> None:
        self._rule = rule
        self._weights = weights
        self._window_s = window_s
        self.inflation = 0.0

    def keep_score(self, entries: Sequence[Entry], now_s: float) -> list[float]:
        """How much each is worth keeping, in the entries' order; higher is kept longer.

        Scores compare only within one call, except GDSF's, which its clock continues. The weights
        matter to CHAMELEON alone.
        """
        since_s = now_s - self._window_s
        uses = [entry.uses_since(since_s) for entry in entries]
        match self._rule:
            case KeepRule.CHAMELEON | KeepRule.FAIR_SHARE:
                is_fair = self._rule is KeepRule.FAIR_SHARE
                return _weighted(entries, uses, _EQUAL if is_fair else self._weights)
            case KeepRule.LRU:
                return [entry.last_use_s for entry in entries]
            case KeepRule.LFU | KeepRule.DENSITY:
                rule = _frequencies if self._rule is KeepRule.LFU else _densities
                return rule(entries, uses)
            case KeepRule.GDSF:
                return _costs(entries, uses)
            case KeepRule.BELADY:
                return [-entry.next_use_s for entry in entries]
            case _:
                assert_never(self._rule)

    def cheapest(
        self, entries: Sequence[Entry], lacking: int, size: Callable[[Entry], int], now_s: float
    ) -> list[Entry]:
        """The entries least worth keeping, whose sizes sum up to `lacking`, or all of them."""
        if not entries or lacking <= 0:
            return []
        scores = self.keep_score(entries, now_s)
        chosen: list[Entry] = []
        for score, _, entry in sorted(
            (score, entry.adapter.id, entry) for score, entry in zip(scores, entries, strict=True)
        ):
            if lacking <= 0:
                break
            chosen.append(entry)
            lacking -= size(entry)
            self.inflation = max(self.inflation, score)
        return chosen
