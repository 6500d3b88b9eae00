"""Which adapter does a request name?"""

import random
from bisect import bisect_right
from collections.abc import Sequence
from itertools import accumulate

from chameleon_lora.errors import ConfigError


def power_law_shares(count: int, alpha: float) -> tuple[float, ...]:
    """Shares of the ranks 1..count, in proportion to rank^-alpha; they sum to 1.

    A true power law, as the paper's section 5 asks: alpha 0 is uniform and alpha 1 is Zipf's law.
    (Neither alpha^-rank, which is geometric, nor numpy's `random.power`, which is uniform at 1.)

    Raises:
        ConfigError: there are no ranks, or alpha is negative.
    """
    if count < 1 or alpha < 0.0:
        raise ConfigError(
            f"no power law over {count} adapters with exponent {alpha}: "
            "give at least one adapter and an exponent of at least 0"
        )
    weights = [float(rank) ** -alpha for rank in range(1, count + 1)]
    total = sum(weights)
    return tuple(weight / total for weight in weights)


def draw_ranks(shares: Sequence[float], count: int, rng: random.Random) -> tuple[int, ...]:
    """`count` independent draws of an index into `shares`; O(count log len(shares))."""
    bounds = list(accumulate(shares))
    last = len(bounds) - 1
    # Rounding may leave the last bound a hair below 1; min() keeps a draw above it inside.
    return tuple(min(bisect_right(bounds, rng.random()), last) for _ in range(count))
