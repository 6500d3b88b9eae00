"""Why did requests of a run fail, and how many for each reason?"""

import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum

from chameleon_lora.metrics.record import RequestRecord

_HTTP_STATUS = re.compile(r"HTTP \d{3}\b")


class Cause(Enum):
    """What each error of a record begins with; these words stay as they are."""

    HTTP = "HTTP"  # with its status: HTTP 404
    REFUSED = "connection refused"  # nobody listens there
    UNREACHABLE = "no connection"  # no such host, no route, a bad certificate, no file descriptor
    LOST = "connection lost"  # the server died or hung up
    NOT_OPENAI = "not OpenAI"  # a page, JSON without choices, no event stream
    BROKEN_OFF = "stream broken off"  # an error in mid-stream, or an end without [DONE]
    NO_TOKEN = "no token"  # a whole answer that holds nothing
    GIVEN_UP = "given up"  # not whole when the run's patience ended
    OTHER = "other"

    def error(self, detail: str) -> str:
        """The text for a record: these words first, then what happened."""
        return f"{self.value}: {detail}"


@dataclass(frozen=True, slots=True)
class ErrorCount:
    """The failed requests that have one cause.

    Attributes:
        cause: a value of `Cause`; HTTP errors are told apart by status, such as `HTTP 404`.
        example: the whole error of the first of them.
        adapters: whom they asked for, each once, by name; requests to the base model add none.
    """

    cause: str
    count: int
    example: str
    adapters: tuple[str, ...]


def by_cause(records: Sequence[RequestRecord]) -> tuple[ErrorCount, ...]:
    """One count a cause, most frequent first, then by name; empty if no request failed."""
    failed = [(cause_of(r.error), r) for r in records if r.error is not None]
    counts = Counter(cause for cause, _ in failed)
    return tuple(
        ErrorCount(
            cause=cause,
            count=counts[cause],
            example=next(r.error or "" for other, r in failed if other == cause),
            adapters=tuple(
                sorted({r.adapter for other, r in failed if other == cause and r.adapter})
            ),
        )
        for cause in sorted(counts, key=lambda cause: (-counts[cause], cause))
    )


def cause_of(error: str) -> str:
    """`HTTP 404` and its like, or a value of `Cause`; `other` for an error that begins otherwise."""
    if status := _HTTP_STATUS.match(error):
        return status[0]
    words = error.partition(":")[0]
    return words if words in {cause.value for cause in Cause} else Cause.OTHER.value
