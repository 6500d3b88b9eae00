"""How sure is a ratio? Bootstrap intervals of paired runs."""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from chameleon_lora.metrics.record import RequestRecord

DRAWS = 400
LEVEL = 0.95
Values = NDArray[np.float64]
ValuesOf = Callable[[Sequence[RequestRecord]], Sequence[float]]


@dataclass(frozen=True, slots=True)
class Interval:
    """A median of paired ratios, and the bounds within which 95 % of its bootstrap draws lie.

    Attributes:
        low, high: None where one pair is all there is to draw from: nobody knows what another would say.
    """

    ratio: float
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True, slots=True)
class Pair:
    """The same requests on two servers: of each request its values on the one and on the other."""

    base: tuple[Values, ...]
    other: tuple[Values, ...]


def paired(
    base: Sequence[RequestRecord], other: Sequence[RequestRecord], values_of: ValuesOf
) -> Pair:
    """The requests that both completed, by index; `values_of` are times in seconds."""
    on_other = {record.index: record for record in other if record.is_completed}
    both = [
        (record, on_other[record.index])
        for record in base
        if record.is_completed and record.index in on_other
    ]
    return Pair(
        tuple(np.asarray(values_of([one]), dtype=np.float64) for one, _ in both),
        tuple(np.asarray(values_of([two]), dtype=np.float64) for _, two in both),
    )


def percentile_ratio(pairs: Sequence[Pair], percent: float, seed: int = 0) -> Interval | None:
    """The ratio of a percentile, `other` over `base`: the median over pairs, with its interval.

    Each draw takes pairs with replacement, and in each of them blocks of neighbouring requests with
    replacement, the same ones on both servers: neighbours wait in one queue, so they are not
    independent (moving-block bootstrap, Kuensch 1989; circular, blocks of sqrt(requests)). None if
    no pair has values, or the base's are nought.
    """
    usable = [pair for pair in pairs if sum(map(len, pair.base)) and sum(map(len, pair.other))]
    if not usable:
        return None
    rng = np.random.default_rng(seed)
    ratio = _median([_ratio(pair, range(len(pair.base)), percent) for pair in usable])
    if not math.isfinite(ratio):
        return None
    draws: list[float] = []
    for _ in range(DRAWS):
        chosen = rng.integers(len(usable), size=len(usable))
        draws.append(
            _median([_ratio(usable[i], _blocks(len(usable[i].base), rng), percent) for i in chosen])
        )
    return _interval(ratio, draws, len(usable))


def ratio_of(base: Sequence[float], other: Sequence[float]) -> Interval | None:
    """The median of paired ratios of one figure a run; its interval draws pairs. None without any."""
    ratios = [o / b for b, o in zip(base, other, strict=True) if b > 0.0]
    if not ratios:
        return None
    if len(ratios) == 1:
        return Interval(ratios[0], None, None, 1)
    rng = np.random.default_rng(0)
    drawn = rng.choice(np.asarray(ratios), size=(DRAWS, len(ratios)))
    return _interval(_median(ratios), list(np.median(drawn, axis=1)), len(ratios))


def _median(values: Sequence[float]) -> float:
    return float(np.median(np.asarray(values)))


def _ratio(pair: Pair, places: Sequence[int], percent: float) -> float:
    base = np.concatenate([pair.base[place] for place in places])
    other = np.concatenate([pair.other[place] for place in places])
    if not len(base) or not len(other):
        return math.nan
    below = float(np.percentile(base, percent))
    return float(np.percentile(other, percent)) / below if below else math.nan


def _blocks(count: int, rng: np.random.Generator) -> list[int]:
    """`count` places out of as many, in blocks of neighbours."""
    length = max(1, math.isqrt(count))
    starts = rng.integers(count, size=math.ceil(count / length))
    return [(int(start) + step) % count for start in starts for step in range(length)][:count]


def _interval(ratio: float, draws: Sequence[float], pairs: int) -> Interval:
    tail = 100.0 * (1.0 - LEVEL) / 2.0
    low, high = np.nanpercentile(draws, [tail, 100.0 - tail])
    return Interval(ratio, float(low), float(high), pairs)
