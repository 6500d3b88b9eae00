"""Whose answers are these? Tokens of one engine set beside those of another."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

Tokens = Sequence[int]
MARGIN = 2
"""Tokens by which another adapter's answer must be nearer: one may be the same by chance."""


@dataclass(frozen=True, slots=True)
class Likeness:
    """How alike two lists of answers to the same questions are.

    Attributes:
        equal: answers whose tokens are all the same.
        first_equal: answers whose first tokens are the same.
        differing: places of the others.
    """

    answers: int
    equal: int
    first_equal: int
    differing: tuple[int, ...]


def likeness(expected: Sequence[Tokens], found: Sequence[Tokens]) -> Likeness:
    """Of two lists of the same length."""
    pairs = list(zip(expected, found, strict=True))
    differing = tuple(place for place, (one, other) in enumerate(pairs) if list(one) != list(other))
    firsts = sum(list(one)[:1] == list(other)[:1] for one, other in pairs)
    return Likeness(len(pairs), len(pairs) - len(differing), firsts, differing)


def is_anothers(answer: Tokens, own: str, known: Mapping[str, Tokens]) -> bool:
    """Does it go on with another adapter's answer for MARGIN tokens longer than with its own's?

    `own` was asked for; `known` has what each adapter answers to the same prompt.
    """
    own_length = shared_length(answer, known[own])
    return any(shared_length(answer, other) >= own_length + MARGIN for other in known.values())


def shared_length(one: Tokens, other: Tokens) -> int:
    """How many tokens are the same, from the first on."""
    for place, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return place
    return min(len(one), len(other))
