"""How long are prompts and answers?"""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass

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

The trace's 19,366 requests in 8 equal groups by input, each in 8 by output; a pair is its group's mean
(tests/workload/test_azure.py makes them again). The source and its licence (CC-BY 4.0) stand in
`workload.trace_formats`. Means: 1,155 input and 211 output tokens.
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


def _within(tokens: int, limits: tuple[int, int]) -> int:
    return min(max(tokens, limits[0]), limits[1])
