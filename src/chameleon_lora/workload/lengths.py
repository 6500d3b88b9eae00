"""How long are prompts and answers?"""

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

from chameleon_lora.errors import ConfigError

LengthPair = tuple[int, int]
"""Input and output tokens of one request."""

AZURE_CONVERSATION: tuple[LengthPair, ...] = (
    (151, 40),
    (177, 89),
    (149, 119),
    (134, 148),
    (186, 164),
    (174, 179),
    (168, 204),
    (192, 245),
    (302, 21),
    (374, 57),
    (373, 68),
    (376, 78),
    (384, 86),
    (384, 92),
    (385, 100),
    (372, 128),
    (408, 77),
    (407, 88),
    (407, 93),
    (408, 97),
    (407, 102),
    (407, 110),
    (405, 125),
    (407, 153),
    (753, 61),
    (669, 90),
    (675, 108),
    (863, 286),
    (984, 393),
    (983, 402),
    (984, 418),
    (981, 492),
    (1052, 280),
    (1050, 389),
    (1053, 396),
    (1050, 402),
    (1051, 411),
    (1052, 421),
    (1053, 439),
    (1053, 563),
    (1131, 208),
    (1122, 386),
    (1126, 395),
    (1125, 400),
    (1123, 411),
    (1126, 422),
    (1122, 441),
    (1126, 570),
    (1684, 48),
    (1715, 71),
    (1735, 91),
    (1703, 117),
    (1430, 149),
    (1391, 188),
    (1283, 321),
    (1250, 452),
    (3928, 32),
    (4008, 42),
    (3820, 49),
    (3920, 58),
    (3734, 71),
    (3442, 87),
    (3523, 112),
    (3485, 176),
)
"""64 equally likely (input, output) tokens of the Azure conversation trace of 2023.

Made by `representative_pairs` with 8 bins from the trace's 19,366 requests; the source and its
licence (CC-BY 4.0) stand in `workload.trace_formats`. Means: 1,155 input and 211 output tokens.
"""


@dataclass(frozen=True, slots=True)
class LengthScale:
    """How recorded lengths are made to fit a small machine, as the paper's section 5 scales its own.

    Attributes:
        factor: multiplies both lengths; above 0.
        input_tokens: least and most input tokens after scaling, both included.
        output_tokens: least and most output tokens after scaling, both included.
    """

    factor: float = 1.0
    input_tokens: tuple[int, int] = (1, 1_000_000)
    output_tokens: tuple[int, int] = (1, 1_000_000)

    def __post_init__(self) -> None:
        if not 0.0 < self.factor < math.inf:
            raise ConfigError(f"a length factor of {self.factor} leaves no tokens; use one above 0")
        for low, high in (self.input_tokens, self.output_tokens):
            if not 1 <= low <= high:
                raise ConfigError(
                    f"token limits {low}..{high} hold no length: use 1 <= least <= most"
                )

    def scaled(self, pair: LengthPair) -> LengthPair:
        """`pair` times the factor, rounded, then brought inside the limits."""
        return (
            _within(round(pair[0] * self.factor), self.input_tokens),
            _within(round(pair[1] * self.factor), self.output_tokens),
        )


def draw_lengths(
    pairs: Sequence[LengthPair], scale: LengthScale, count: int, rng: random.Random
) -> tuple[LengthPair, ...]:
    """`count` scaled pairs, drawn without replacement until all are used, then anew.

    So every len(pairs) draws in a row have exactly the mean of `pairs`: runs of a minute differ in
    order rather than in work.
    """
    return tuple(scale.scaled(pairs[place]) for place in draw_places(len(pairs), count, rng))


def draw_places(places: int, count: int, rng: random.Random) -> list[int]:
    """`count` numbers below `places`, each once before any comes again."""
    drawn: list[int] = []
    while len(drawn) < count:
        drawn += rng.sample(range(places), places)
    return drawn[:count]


def factor_for_memory(
    pairs: Sequence[LengthPair], kv_tokens: float, rate_per_s: float, token_s: float
) -> float:
    """The `LengthScale.factor` at which requests hold `kv_tokens` tokens of KV cache on average.

    By Little's law: a request of i input and o output tokens runs for o * token_s and holds i + o/2
    tokens on average meanwhile, so all together hold rate_per_s * token_s * E[o * (i + o/2)]; both
    lengths times f make that f^2 as much. Prefill, queueing and the scale's limits are left out.

    Raises:
        ConfigError: there are no output tokens, or a number is not above 0.
    """
    held = sum(o * (i + o / 2.0) for i, o in pairs) / max(1, len(pairs)) * rate_per_s * token_s
    if not (held > 0.0 and kv_tokens > 0.0):
        raise ConfigError(
            f"no factor makes {len(pairs)} lengths at {rate_per_s} requests/s and {token_s} s a "
            f"token hold {kv_tokens} KV tokens: give lengths, and numbers above 0"
        )
    return math.sqrt(kv_tokens / held)


def representative_pairs(lengths: Sequence[LengthPair], bins: int) -> tuple[LengthPair, ...]:
    """`bins` * `bins` equally likely pairs that stand for the joint distribution of `lengths`.

    The requests are cut into `bins` equal groups by input, each of these into `bins` equal groups
    by output; a pair is its group's mean, rounded. So the means of both lengths and the dependence
    of output on input are kept, while the outermost tails are drawn in to their group's mean.
    Needs at least bins * bins lengths.
    """
    pairs: list[LengthPair] = []
    for column in _equal_groups(sorted(lengths), bins):
        for cell in _equal_groups(sorted(column, key=lambda pair: (pair[1], pair[0])), bins):
            inputs, outputs = zip(*cell, strict=True)
            pairs.append((round(sum(inputs) / len(cell)), round(sum(outputs) / len(cell))))
    return tuple(pairs)


def _equal_groups(ordered: Sequence[LengthPair], groups: int) -> Iterator[Sequence[LengthPair]]:
    """Consecutive runs of `ordered` whose sizes differ by at most one."""
    cuts = [len(ordered) * index // groups for index in range(groups + 1)]
    for start, end in pairwise(cuts):
        yield ordered[start:end]


def _within(tokens: int, limits: tuple[int, int]) -> int:
    return min(max(tokens, limits[0]), limits[1])
