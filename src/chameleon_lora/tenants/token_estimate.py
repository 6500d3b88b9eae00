"""What a request asks for, as far as its body tells before anybody has read the prompt."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

COMPLETIONS = "/v1/completions"
GENERATING = frozenset({COMPLETIONS, "/v1/chat/completions", "/v1/responses", "/v1/messages"})
SCORING = frozenset({"/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"})
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
QUERIES = ("query", "queries", "text_1", "data_1")
SCORED = ("documents", "items", "text_2", "data_2")
COMPLETION_TOKENS = 16  # of a completion that says nothing, as OpenAI and vLLM have it
BYTES_PER_TOKEN = 4
MOST = (1 << 31) - 1


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """Tokens charged before the request runs; what it used is known afterwards.

    Attributes:
        is_open: the request sets no limit to its answer, so `output_tokens` is what it may be at most.
    """

    input_tokens: int = 0
    output_tokens: int = 0
    is_open: bool = False


def estimate_of(
    path: str, body: Mapping[str, Any], nbytes: int, context_tokens: int
) -> TokenEstimate:
    """What a body of so many bytes asks of a route, of a model with so long a context.

    The prompt is estimated at 4 bytes of the body a token; a query is read with each document, and a
    prompt anew for each token of a beam. The answer is the longest limit given, for each prompt of a
    list and each of the `n` answers or beams; without one it may fill the context.

    Raises:
        ValueError: a number is beyond all limits; the message names its field and the way out.
    """
    input_tokens = -(-(nbytes + _read_again(path, body)) // BYTES_PER_TOKEN)
    if path not in GENERATING:
        return TokenEstimate(input_tokens)
    limits = [limit for key in LIMITS if (limit := _count(body, key)) is not None]
    if path == COMPLETIONS and "max_tokens" not in body:
        limits.append(COMPLETION_TOKENS)
    each = max(limits, default=context_tokens)
    answers = max(_count(body, "n") or 1, _count(body, "best_of") or 1)
    if body.get("use_beam_search"):
        input_tokens *= answers * each
    prompts = max(1, _prompts(body.get("prompt")) + _prompts(body.get("prompt_embeds")))
    return TokenEstimate(input_tokens, each * answers * prompts, is_open=not limits)


def _prompts(given: object) -> int:
    """How many a field holds; a list of numbers is one."""
    if not isinstance(given, list):
        return int(given is not None)
    return 1 if given and isinstance(given[0], int) else len(given)


def _read_again(path: str, body: Mapping[str, Any]) -> int:
    """Bytes that are read once more than they were sent: one query's, for all documents but the first."""
    if path not in SCORING:
        return 0
    scored = max((len(v) for key in SCORED if isinstance(v := body.get(key), list)), default=1)
    queries = [body[key] for key in QUERIES if key in body]
    size = max((len(str(query)) for query in queries if not _is_several(query)), default=0)
    return size * max(0, scored - 1)


def _is_several(query: object) -> bool:
    return isinstance(query, list) and len(query) != 1


def _count(body: Mapping[str, Any], key: str) -> int | None:
    """A whole number, at least 1, in any of the forms that vLLM reads one in; None for anything else."""
    value = body.get(key)
    if not isinstance(value, int | float | str):
        return None
    try:
        number = float(value)
    except ValueError:
        return None
    except OverflowError:  # of hundreds of digits
        number = math.inf
    if not abs(number) <= MOST:
        raise ValueError(f"'{key}' is no number up to {MOST}; send one that is, or leave it out.")
    return max(1, math.ceil(number))
