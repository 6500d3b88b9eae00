"""Which adapter does a request name?"""

import math
import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.named_adapters import NamedAdapter

MIN_SHIFT_S = 0.001

Ring = tuple[int, ...]
"""Places of adapters, most popular first, among which popularity is a power law and drifts."""


def power_law_shares(count: int, alpha: float) -> tuple[float, ...]:
    """Shares of the ranks 1..count, in proportion to rank^-alpha; they sum to 1.

    A true power law, as the paper's section 5 asks: alpha 0 is uniform and alpha 1 is Zipf's law.
    (Neither alpha^-rank, which is geometric, nor numpy's `random.power`, which is uniform at 1.)

    Raises:
        ConfigError: there are no ranks, or alpha is negative.
    """
    if count < 1 or not 0.0 <= alpha < math.inf:
        raise ConfigError(
            f"no power law over {count} adapters with exponent {alpha}: "
            "give at least one adapter and an exponent of at least 0"
        )
    weights = [float(rank) ** -alpha for rank in range(1, count + 1)]
    total = sum(weights)
    return tuple(weight / total for weight in weights)


def request_shares(
    adapters: Sequence[str | NamedAdapter], alpha: float, rank_alpha: float | None = None
) -> tuple[float, ...]:
    """The share of requests of each adapter, in the order of `adapters`, before any drift.

    Without `rank_alpha` one power law runs over all, in their order. With it the LoRA ranks, in
    order of their first adapter, share by rank^-rank_alpha, and the adapters of one LoRA rank by
    rank^-alpha: the paper's section 5 is rank_alpha 0, all LoRA ranks equally popular.

    Raises:
        ConfigError: there are no adapters, an exponent is negative, or `rank_alpha` is given for
            an adapter whose rank is not known.
    """
    rings = _rings(adapters, by_rank=rank_alpha is not None)
    shares = [0.0] * len(adapters)
    for ring, of_ring in zip(rings, power_law_shares(len(rings), rank_alpha or 0.0), strict=True):
        for place, inside in zip(ring, power_law_shares(len(ring), alpha), strict=True):
            shares[place] = of_ring * inside
    return tuple(shares)


def draw_ranks(shares: Sequence[float], count: int, rng: random.Random) -> tuple[int, ...]:
    """`count` independent draws of an index into `shares`; O(count log len(shares))."""
    bounds = list(accumulate(shares))
    last = len(bounds) - 1
    # Rounding may leave the last bound a hair below 1; min() keeps a draw above it inside.
    return tuple(min(bisect_right(bounds, rng.random()), last) for _ in range(count))


def drifted(
    places: Sequence[int],
    times_s: Sequence[float],
    adapters: Sequence[str | NamedAdapter],
    shift_s: float,
    *,
    by_rank: bool,
) -> tuple[int, ...]:
    """What the drawn `places` in `adapters` have become at `times_s`.

    Each `shift_s` seconds every adapter moves up one place in popularity and the first becomes the
    last: among all, or `by_rank` among those of its LoRA rank.

    Raises:
        ConfigError: `shift_s` is below a millisecond.
    """
    if not shift_s >= MIN_SHIFT_S:
        raise ConfigError(
            f"popularity cannot shift each {shift_s} s: give {MIN_SHIFT_S} s or more, math.inf for never"
        )
    seats = {
        place: (ring, seat)
        for ring in _rings(adapters, by_rank=by_rank)
        for seat, place in enumerate(ring)
    }
    return tuple(
        ring[(seat + int(time_s / shift_s)) % len(ring)]
        for (ring, seat), time_s in zip((seats[place] for place in places), times_s, strict=True)
    )


def _rings(adapters: Sequence[str | NamedAdapter], *, by_rank: bool) -> tuple[Ring, ...]:
    """All adapters, or those of each LoRA rank."""
    if not by_rank:
        return (tuple(range(len(adapters))),)
    rings: dict[int, list[int]] = {}
    for place, adapter in enumerate(adapters):
        if isinstance(adapter, str):
            raise ConfigError(
                f"adapter {adapter!r} has no rank to share by; way out: give NamedAdapter(name, "
                "rank), or leave rank_alpha out"
            )
        rings.setdefault(adapter.rank, []).append(place)
    return tuple(tuple(ring) for ring in rings.values())
