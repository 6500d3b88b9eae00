"""What happened to one request of a run."""

from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

RESIDENCIES = ("slot", "device", "host", "loading", "disk")
"""Where an adapter can be, fastest first: in a slot, in idle KV memory, in host memory, being read,
on disk."""


@dataclass(frozen=True, slots=True)
class RequestRecord:
    """One request as the client saw it. Times are seconds since the run began.

    Attributes:
        adapter: None for the base model.
        arrival_s: when the workload wanted it sent.
        sent_s: when the client did send it.
        first_token_s: None if no token came.
        token_times_s: when each stream chunk with text came, ascending.
        end_s: when the answer was complete, or the failure was seen.
        prompt_tokens: as the server counted them, or as sent if it did not say.
        output_tokens: as the server counted them, or the chunks if it did not say.
        error: why the request failed, None if it did not.
        residency: where its adapter was when the server got the request (`RESIDENCIES`); None for
            the base model and for servers that do not tell.
    """

    index: int
    adapter: str | None
    arrival_s: float
    sent_s: float
    first_token_s: float | None
    token_times_s: tuple[float, ...]
    end_s: float
    prompt_tokens: int
    output_tokens: int
    error: str | None = None
    residency: str | None = None

    @property
    def is_completed(self) -> bool:
        """Did the whole answer come?"""
        return self.error is None and self.first_token_s is not None

    @property
    def lateness_s(self) -> float:
        """By how much the client itself was late; large values make a run's figures doubtful."""
        return self.sent_s - self.arrival_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token from the intended arrival, so that a slow client hides nothing."""
        return None if self.first_token_s is None else self.first_token_s - self.arrival_s

    @property
    def latency_s(self) -> float:
        """From the intended arrival to the end of the answer."""
        return self.end_s - self.arrival_s

    @property
    def token_gaps_s(self) -> tuple[float, ...]:
        """Times between neighbouring tokens (ITL); empty for an answer of one token."""
        return tuple(after - before for before, after in pairwise(self.token_times_s))

    @property
    def per_token_s(self) -> float | None:
        """Mean time of a token after the first (TPOT); None for an answer of one token."""
        if self.first_token_s is None or self.output_tokens < 2:
            return None
        return (self.end_s - self.first_token_s) / (self.output_tokens - 1)


def ttfts_s(records: Iterable[RequestRecord]) -> list[float]:
    """Times to first token of the completed ones."""
    return [r.ttft_s for r in records if r.is_completed and r.ttft_s is not None]


def token_gaps_s(records: Iterable[RequestRecord]) -> list[float]:
    """Between neighbouring tokens of a request, of all completed ones together."""
    return [gap_s for r in records if r.is_completed for gap_s in r.token_gaps_s]
