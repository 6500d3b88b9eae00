"""What is asked of a server in one request, in OpenAI's words."""

import random
import re
from dataclasses import dataclass
from enum import Enum
from typing import Any

import msgspec

_WORDS = re.findall(
    "[a-z]+",
    "the of and to in is that it was for on are as with his they at be this from have or by one "
    "had not but what all were when we there can an your which their said if do will each about "
    "how up out them then she many some so these would other into has more her two like him see "
    "time could no make than first been its who now people my made over did down only way find",
)
"""Short English words, each of them one token of most vocabularies."""


class Endpoint(Enum):
    """Where completions are asked for; the value is the path."""

    COMPLETIONS = "/v1/completions"
    CHAT = "/v1/chat/completions"


class PromptForm(Enum):
    """What stands for a prompt of so many tokens."""

    TOKEN_IDS = "token-ids"  # as long as it says; for vLLM and others that take ids
    TEXT = "text"  # words of about a token each; chat takes nothing else


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One completion, greedy and streamed.

    Attributes:
        model: an adapter's name, or the base model's.
        prompt: token ids, so that the prompt is as long as it says, or text; with the chat endpoint
            text, which becomes one message of the user.
        output_tokens: the server is told to end after this many.
        ignore_eos: and not to stop before; vLLM's extension, which strict servers refuse.
        returns_ids: the answer's token ids are wanted too; another extension of vLLM's.
    """

    model: str
    prompt: tuple[int, ...] | str
    output_tokens: int
    endpoint: Endpoint = Endpoint.COMPLETIONS
    ignore_eos: bool = True
    returns_ids: bool = False

    def body(self) -> dict[str, Any]:
        """The JSON body of the POST."""
        return {
            "model": self.model,
            **self._prompt(),
            "max_tokens": self.output_tokens,
            **({"ignore_eos": True} if self.ignore_eos else {}),
            **({"return_token_ids": True} if self.returns_ids else {}),
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }

    def call(self) -> "EncodedCompletion":
        """The POST's path and its body as JSON bytes."""
        return EncodedCompletion(self.model, self.endpoint.value, msgspec.json.encode(self.body()))

    def _prompt(self) -> dict[str, Any]:
        match self.endpoint:
            case Endpoint.COMPLETIONS:
                return {"prompt": self.prompt}
            case Endpoint.CHAT:
                return {"messages": [{"role": "user", "content": self.prompt}]}


@dataclass(frozen=True, slots=True)
class EncodedCompletion:
    """A completion made ready before a run's clock starts: a fifth of the memory, and cheap to send."""

    model: str
    path: str
    body: bytes


def token_prompt(rng: random.Random, tokens: int, token_ids: tuple[int, int]) -> tuple[int, ...]:
    """A prompt of so many token ids of the half-open range."""
    return tuple(rng.randrange(*token_ids) for _ in range(tokens))


def text_prompt(rng: random.Random, tokens: int) -> str:
    """A prompt of so many words, of about one token each."""
    return " ".join(rng.choices(_WORDS, k=tokens))
