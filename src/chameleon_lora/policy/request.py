"""What the policy is told about: adapters and the requests that name them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import NewType

AdapterId = NewType("AdapterId", int)
RequestId = NewType("RequestId", str)
MOST_WORDS = 128  # of a prompt are looked at


@dataclass(frozen=True, slots=True)
class Adapter:
    """One version of one adapter. A reload makes a new Adapter with a new id.

    Attributes:
        id: unique for the engine's life; never reused for other weights.
        nbytes: bytes of the packed weights at their exact rank, > 0.
    """

    id: AdapterId
    name: str
    rank: int
    nbytes: int


@dataclass(frozen=True, slots=True)
class Share:
    """On whose account a request runs, where lanes are shared fairly.

    Attributes:
        weight: how much it gets of a contended lane, against the weights of others; > 0.
    """

    name: str
    weight: float = 1.0


@dataclass(frozen=True, slots=True)
class Request:
    """One request as it arrived.

    Attributes:
        adapter_id: None for the base model.
        input_tokens: prompt length, >= 1.
        max_output_tokens: the client's limit, >= 1.
        output_hint_tokens: output length foretold from outside, or None to let the policy estimate.
        words: numbers >= 0 that stand for the prompt's words, such as token ids; at most those that
            `excerpt` leaves. Empty if they are unknown or not wanted.
        share: None where requests are not told apart.
        next_use_s: when the next request that names the adapter will come, for a driver that knows the
            future; None: unknown.
    """

    id: RequestId
    adapter_id: AdapterId | None
    input_tokens: int
    max_output_tokens: int
    output_hint_tokens: int | None = None
    words: tuple[int, ...] = ()
    share: Share | None = None
    next_use_s: float | None = None


def excerpt(words: Sequence[int]) -> tuple[int, ...]:
    """The words of a prompt that are looked at: all, or the first and the last 64."""
    if len(words) <= MOST_WORDS:
        return tuple(words)
    half = MOST_WORDS // 2
    return (*words[:half], *words[-half:])
