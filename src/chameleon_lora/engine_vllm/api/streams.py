"""An error that comes when an answer has begun, or is no longer waited for: told in its own words.

Each function is a hook of `hook_table`. vLLM breaks such answers off, or leaves them unfinished for ever.
"""

import json
from collections.abc import AsyncIterator
from http import HTTPStatus
from typing import Any

from chameleon_lora.engine_vllm.errors import http_error, is_ours_error, openai_error

ERROR_EVENT = "error"


def ending_in_words(stock: Any) -> Any:
    """OpenAIServingResponses.responses_stream_generator whose last event is the error, if one ends it.

    vLLM breaks the connection off, or makes an event of another kind of it and fails in that.
    """

    async def stream(serving: Any, *args: Any, **kwargs: Any) -> Any:
        number = 0
        try:
            async for event in stock(serving, *args, **kwargs):
                number += 1
                yield event
        except Exception as error:
            if not is_ours_error(error):
                raise
            told = serving.create_error_response(error).error
            status = HTTPStatus(told.code)
            event = {"type": ERROR_EVENT, "code": told.type, "sequence_number": number}
            yield openai_error(told.message, told.type, status, message=told.message, **event)

    return stream


def failing_in_background(stock: Any) -> Any:
    """What runs a request of /v1/responses in the background: one that fails is kept as failed.

    vLLM leaves it queued, and whoever asks for it waits for ever.
    """

    async def run(serving: Any, request: Any, *args: Any, **kwargs: Any) -> None:
        try:
            await stock(serving, request, *args, **kwargs)
        except Exception as error:
            _keep_as_failed(serving, request.request_id, serving.create_error_response(error).error)
            if not is_ours_error(error):
                raise
        events, _ = serving.event_store.get(request.request_id, ((), None))
        if events and _is_error(events[-1]):
            _keep_as_failed(serving, request.request_id, events[-1].error)

    return run


def _keep_as_failed(serving: Any, response_id: str, told: Any) -> None:
    kept = serving.response_store.get(response_id)
    if kept is not None and kept.status not in ("completed", "cancelled"):
        kept.status = "failed"
        kept.error = {"code": told.type, "message": told.message}


def ending_with_the_error(stock: Any) -> Any:
    """OpenAIServingResponses.responses_background_stream_generator that ends where its request did."""

    async def stream(serving: Any, *args: Any, **kwargs: Any) -> Any:
        async for event in stock(serving, *args, **kwargs):
            yield event
            if _is_error(event):
                return

    return stream


def _is_error(event: Any) -> bool:
    return getattr(event, "type", None) == ERROR_EVENT


def reading_errors(stock: Any) -> Any:
    """AnthropicServingMessages.message_stream_converter that understands an error in the chat's stream.

    vLLM tells the client that it could not read that chunk.
    """

    def convert(serving: Any, chunks: Any) -> Any:
        return stock(serving, _raised(chunks))

    return convert


def answering_cohere(stock: Any) -> Any:
    """OpenAIServingChat.create_chat_completion whose stream, for Cohere's route, begins with no error.

    vLLM's converter can read none, and ends the stream without a word: the route gets it in place of the stream.
    One that comes later is raised in its own words, which the converter tells.
    """

    async def create_chat_completion(serving: Any, *args: Any, **kwargs: Any) -> Any:
        answer = await stock(serving, *args, **kwargs)
        if not (hasattr(serving, "create_chat_v2") and hasattr(answer, "__aiter__")):
            return answer
        chunks = _raised(answer)
        try:
            first = await anext(chunks)
        except Exception as error:
            if not is_ours_error(error):
                raise
            return serving.create_error_response(error)
        return _begun(first, chunks)

    return create_chat_completion


async def _begun(first: str, chunks: AsyncIterator[str]) -> AsyncIterator[str]:
    yield first
    async for chunk in chunks:
        yield chunk


async def _raised(chunks: Any) -> AsyncIterator[str]:
    """The chunks as they come; an error among them is raised in its own words."""
    async for chunk in chunks:
        if chunk.startswith('data: {"error"'):
            told = json.loads(chunk.removeprefix("data: "))["error"]
            raise http_error(told["message"], HTTPStatus(told["code"]))
        yield chunk
