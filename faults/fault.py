"""One thing that goes wrong: how it is done, and what may become of the requests it concerns."""

from collections.abc import Awaitable, Callable
from dataclasses import dataclass

from faults.context import FaultContext
from faults.greedy_request import GreedyReply, RequestEnd

SILENCE_S = 8.0  # a step that waited for a stalled disk would last 10 s; a busy machine takes 5
TOLD, RIGHT, EITHER = (
    frozenset({RequestEnd.TOLD}),
    frozenset({RequestEnd.RIGHT}),
    frozenset({RequestEnd.TOLD, RequestEnd.RIGHT}),
)


@dataclass(frozen=True, slots=True)
class FaultOutcome:
    """What came of it.

    Attributes:
        ends: of the requests that the fault concerned.
        recovery_s: from when it was over until the server served right again what it had concerned.
        said: the first error that a client was told.
    """

    ends: tuple[RequestEnd, ...] = ()
    recovery_s: float | None = None
    said: str = ""


@dataclass(frozen=True, slots=True)
class InflictedFault:
    """One thing that goes wrong under a steady load.

    Attributes:
        inflict: does it, and undoes it where it can.
        may_end: how the requests that name what is broken may end; all others must end right.
        silence_s: other requests may not wait longer for a token; None where all must wait.
        ends_server: the server cannot go on, so others are told too.
        drains: though requests that it had taken before end right.
        needs_folder: it is about a served folder, which stock vLLM does not have.
    """

    name: str
    inflict: Callable[[FaultContext], Awaitable[FaultOutcome]]
    may_end: frozenset[RequestEnd] = TOLD
    silence_s: float | None = SILENCE_S
    ends_server: bool = False
    drains: bool = False
    needs_folder: bool = False


def first_error(replies: list[GreedyReply]) -> str:
    """What the first of them that failed was told; "" if none failed."""
    return next((reply.error for reply in replies if reply.error is not None), "")
