"""Sends one streaming completion and notes when each piece of the answer came."""

import json
from collections.abc import AsyncIterator, Callable
from dataclasses import dataclass, field
from http import HTTPStatus
from typing import Any

import aiohttp

Clock = Callable[[], float]
_SHOWN_CHARACTERS = 300


@dataclass(frozen=True, slots=True)
class CompletionRequest:
    """One completion of an exact number of tokens.

    Attributes:
        model: an adapter's name, or the base model's.
        prompt: token ids, so that the prompt is as long as it says.
        output_tokens: the server is told to ignore its stop token and to end after this many.
    """

    model: str
    prompt: tuple[int, ...]
    output_tokens: int

    def body(self) -> dict[str, Any]:
        """The JSON body of POST /v1/completions."""
        return {
            "model": self.model,
            "prompt": list(self.prompt),
            "max_tokens": self.output_tokens,
            "ignore_eos": True,
            "temperature": 0,
            "stream": True,
            "stream_options": {"include_usage": True},
        }


@dataclass(slots=True)
class Answer:
    """What has come so far of one answer; filled by `stream_completion`, times by its clock.

    Attributes:
        usage: (prompt, output) tokens as the server counts them, None until it says.
        error: why the request failed, None if it has not.
    """

    token_times_s: list[float] = field(default_factory=list)
    usage: tuple[int, int] | None = None
    error: str | None = None


async def stream_completion(
    session: aiohttp.ClientSession,
    base_url: str,
    request: CompletionRequest,
    answer: Answer,
    clock: Clock,
) -> None:
    """Fills `answer`. A failure is a value in its `error`, for a run goes on without it.

    A caller that cancels keeps what had come by then.
    """
    try:
        async with session.post(f"{base_url}/v1/completions", json=request.body()) as response:
            if response.status == HTTPStatus.OK:
                await _read_stream(response, answer, clock)
            else:
                text = await response.text()
                answer.error = f"HTTP {response.status}: {text[:_SHOWN_CHARACTERS]}"
    except (aiohttp.ClientError, ConnectionError, ValueError) as error:
        answer.error = f"{type(error).__name__}: {error}"


async def _read_stream(response: aiohttp.ClientResponse, answer: Answer, clock: Clock) -> None:
    """Reads server-sent events until `[DONE]`; a chunk with non-empty choices is a token."""
    async for data in _events(response):
        if data == b"[DONE]":
            break
        now_s = clock()
        chunk = json.loads(data)
        if "error" in chunk:
            answer.error = f"the stream broke off: {str(chunk['error'])[:_SHOWN_CHARACTERS]}"
            return
        if chunk.get("choices"):
            answer.token_times_s.append(now_s)
        if usage := chunk.get("usage"):
            answer.usage = (usage["prompt_tokens"], usage["completion_tokens"])
    else:
        answer.error = "the stream ended without [DONE]"
    if answer.error is None and not answer.token_times_s:
        answer.error = "the answer held no token"


async def _events(response: aiohttp.ClientResponse) -> AsyncIterator[bytes]:
    """The payload of each `data:` line."""
    async for line in response.content:
        if line.startswith(b"data:"):
            yield line[5:].strip()
