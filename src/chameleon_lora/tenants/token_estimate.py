"""What a request asks for, as far as its body tells before anybody has read the prompt."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

GENERATING = frozenset({"/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages"})
LIMITS = ("max_tokens", "max_completion_tokens", "max_output_tokens")
ASSUMED_OUTPUT_TOKENS = 256
BYTES_PER_TOKEN = 4


@dataclass(frozen=True, slots=True)
class TokenEstimate:
    """Tokens charged before the request runs; what it used is known afterwards."""

    input_tokens: int = 0
    output_tokens: int = 0


def estimate_of(path: str, body: Mapping[str, Any], nbytes: int) -> TokenEstimate:
    """What a body of so many bytes asks of a route.

    The prompt is estimated at 4 bytes of the body a token. The answer is the longest limit given,
    or 256 tokens without one, for each prompt of a list and each of the `n` answers.
    """
    input_tokens = -(-nbytes // BYTES_PER_TOKEN)
    if path not in GENERATING:
        return TokenEstimate(input_tokens)
    limits = [limit for key in LIMITS if (limit := _count(body.get(key)))]
    answers = max(_count(body.get("n")) or 1, _count(body.get("best_of")) or 1)
    prompt = body.get("prompt")
    is_many = isinstance(prompt, list) and bool(prompt) and not isinstance(prompt[0], int)
    prompts = len(prompt) if is_many and prompt is not None else 1
    return TokenEstimate(
        input_tokens, max(limits, default=ASSUMED_OUTPUT_TOKENS) * answers * prompts
    )


def _count(value: object) -> int | None:
    is_count = isinstance(value, int) and not isinstance(value, bool) and value > 0
    return value if is_count and isinstance(value, int) else None
