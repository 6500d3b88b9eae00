"""Questions whose answers are known, and how each of them ended."""

import itertools
import random
from dataclasses import dataclass
from enum import Enum

from chameleon_lora.bench.client import Answer
from chameleon_lora.bench.completion import CompletionRequest, token_prompt
from chameleon_lora.metrics.errors import Cause

TEXT_IDS = (3, 512)  # of the tiny model: those before are special
PROMPT_TOKENS = 12
UNFINISHED = "it ended without [DONE]"


@dataclass(frozen=True, slots=True)
class GreedyRequest:
    """One greedy completion of exactly `tokens` tokens; the prompt follows from `seed`."""

    model: str
    seed: int
    tokens: int

    def request(self) -> CompletionRequest:
        """In the server's words."""
        prompt = token_prompt(random.Random(self.seed), PROMPT_TOKENS, TEXT_IDS)
        return CompletionRequest(self.model, prompt, self.tokens, returns_ids=True)


class RequestEnd(Enum):
    """How a request ended."""

    RIGHT = "right"  # whole, and token for token what is known
    WRONG = "wrong"  # with other tokens
    TOLD = "told"  # with an error of the server's own that gives a reason
    LOST = "lost"  # without a word
    REFUSED = "refused"  # nobody listened; it was never taken


@dataclass(frozen=True, slots=True)
class GreedyReply:
    """What came back for one request.

    Attributes:
        error: None for a whole answer.
        began_s: when it was sent.
        silence_s: the longest time without a token: before the first, between two, before an error.
    """

    asked: GreedyRequest
    token_ids: tuple[int, ...]
    error: str | None
    began_s: float
    ended_s: float
    silence_s: float

    def end(self, known: tuple[int, ...] | None) -> RequestEnd:
        """How it ended, if those are the tokens of its answer; None if no answer is known."""
        if known is not None and self.token_ids != known[: len(self.token_ids)]:
            return RequestEnd.WRONG
        if self.error is None:
            return (
                RequestEnd.RIGHT if len(self.token_ids) == self.asked.tokens else RequestEnd.WRONG
            )
        cause = self.error.partition(":")[0]
        if cause == Cause.REFUSED.value:
            return RequestEnd.REFUSED
        is_told = cause.startswith(Cause.HTTP.value) or cause == Cause.BROKEN_OFF.value
        has_reason = '"message"' in self.error and UNFINISHED not in self.error
        return RequestEnd.TOLD if is_told and has_reason else RequestEnd.LOST


def reply_of(asked: GreedyRequest, answer: Answer, began_s: float, ended_s: float) -> GreedyReply:
    """The reply that a client's answer amounts to."""
    times_s = [began_s, *answer.token_times_s]
    if answer.error is not None:
        times_s.append(ended_s)
    silence_s = max((after - before for before, after in itertools.pairwise(times_s)), default=0.0)
    return GreedyReply(asked, tuple(answer.token_ids), answer.error, began_s, ended_s, silence_s)
