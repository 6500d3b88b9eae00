"""Which idle adapter is least worth keeping? A rule gives each a keep value; the lowest goes."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple, assert_never

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.request import AdapterId

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


class Candidate(NamedTuple):
    """An adapter that may go: loaded, and used by no running request.

    Attributes:
        nbytes: > 0.
        use_count: uses within the sliding window, >= 0.
        inflation: GDSF's clock at the last use: the keep value of the last adapter evicted by then.
        next_use_s: when it will be asked for next; infinity if that is not known.
    """

    adapter_id: AdapterId
    nbytes: int
    last_use_s: float
    use_count: int
    inflation: float = 0.0
    next_use_s: float = math.inf


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


def victim(candidates: Sequence[Candidate], rule: KeepRule, weights: KeepWeights) -> Candidate:
    """The candidate with the lowest keep value; of equals the one with the lowest id. O(n).

    There must be a candidate.
    """
    values = keep_values(candidates, rule, weights)
    ranked = zip(values, candidates, strict=True)
    return min(ranked, key=lambda pair: (pair[0], pair[1].adapter_id))[1]


def keep_values(
    candidates: Sequence[Candidate], rule: KeepRule, weights: KeepWeights
) -> list[float]:
    """How much each candidate is worth keeping, in the candidates' order; higher is kept longer.

    Values compare only within one call, except GDSF's, which its clock continues. The weights
    matter to CHAMELEON alone.
    """
    match rule:
        case KeepRule.CHAMELEON | KeepRule.FAIR_SHARE:
            return _weighted(candidates, weights if rule is KeepRule.CHAMELEON else _EQUAL)
        case KeepRule.LRU:
            return [candidate.last_use_s for candidate in candidates]
        case KeepRule.LFU | KeepRule.DENSITY:
            return (_frequencies if rule is KeepRule.LFU else _densities)(candidates)
        case KeepRule.GDSF:
            return [
                c.inflation + c.use_count * (GDSF_FIXED_BYTES + c.nbytes) / c.nbytes
                for c in candidates
            ]
        case KeepRule.BELADY:
            return [-candidate.next_use_s for candidate in candidates]
        case _:
            assert_never(rule)


def _weighted(candidates: Sequence[Candidate], weights: KeepWeights) -> list[float]:
    """F * frequency + R * recency + S * size, each term in [0, 1] (paper §4.2).

    Uses and bytes have a true zero and are divided by the largest; times have none and are
    stretched from oldest to newest (ADR 0006).
    """
    if not candidates:
        return []
    frequency = weights.frequency / max(1, *[c.use_count for c in candidates])
    size = weights.size / max(1, *[c.nbytes for c in candidates])
    recencies = [weights.recency * recency for recency in _recencies(candidates)]
    return [
        frequency * c.use_count + recency + size * c.nbytes
        for c, recency in zip(candidates, recencies, strict=True)
    ]


def _frequencies(candidates: Sequence[Candidate]) -> list[float]:
    """The uses within the window, plus up to half a use for recency, so that equals differ."""
    recencies = _recencies(candidates)
    return [c.use_count + r / 2 for c, r in zip(candidates, recencies, strict=True)]


def _densities(candidates: Sequence[Candidate]) -> list[float]:
    """Uses in as many bytes as the smallest candidate has: what its memory earns (ADR 0017)."""
    smallest = min((c.nbytes for c in candidates), default=0)
    uses = _frequencies(candidates)
    return [use * smallest / c.nbytes for use, c in zip(uses, candidates, strict=True)]


def _recencies(candidates: Sequence[Candidate]) -> list[float]:
    """0 for the longest unused to 1 for the last used; 0 for all when they are equal."""
    times_s = [candidate.last_use_s for candidate in candidates]
    oldest_s = min(times_s, default=0.0)
    span_s = max(times_s, default=0.0) - oldest_s
    if not span_s:
        return [0.0] * len(times_s)
    return [(time_s - oldest_s) / span_s for time_s in times_s]


class Evictor:
    """The keep rule at work. Owner: the residency; tiers share it.

    Attributes:
        inflation: the highest keep value that went so far. It is GDSF's clock; other rules have no
            use for it, as they have none for the next use.
    """

    def __init__(self, rule: KeepRule, weights: KeepWeights, window_s: float) -> None:
        self._rule = rule
        self._weights = weights
        self._window_s = window_s
        self.inflation = 0.0

    def keep_score(self, entries: Sequence[Entry], now_s: float) -> list[float]:
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
        values = self.keep_score(entries, now_s)
        chosen: list[Entry] = []
        for value, _, entry in sorted(
            (value, entry.adapter.id, entry) for value, entry in zip(values, entries, strict=True)
        ):
            if lacking <= 0:
                break
            chosen.append(entry)
            lacking -= size(entry)
            self.inflation = max(self.inflation, value)
        return chosen
