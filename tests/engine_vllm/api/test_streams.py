"""An error after an answer has begun, or that nobody waits for, is told in its own words."""

import asyncio
import json
import logging
from collections import deque
from http import HTTPStatus
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.api.streams import (
    answering_cohere,
    ending_in_words,
    ending_with_the_error,
    failing_in_background,
    reading_errors,
)
from chameleon_lora.engine_vllm.errors import (
    client_error,
    http_error,
    leave_out_of_log,
    openai_error,
)

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
REASON = "adapter 'a': no weights"


def test_a_stream_of_the_responses_api_ends_with_the_error() -> None:
    """As an event of OpenAI's form, numbered on; errors that are not ours stay vLLM's."""
    pytest.importorskip("vllm")
    from vllm.entrypoints.serve.engine.serving import BaseServing

    async def collect(error: Exception) -> list[Any]:
        async def stock(_serving: Any) -> Any:
            yield "begun"
            raise error

        return [event async for event in ending_in_words(stock)(BaseServing)]

    ours = client_error(REASON, HTTPStatus.BAD_REQUEST, is_pooling=False)
    begun, event = asyncio.run(collect(ours))
    assert ("begun", "error", 1) == (begun, event.type, event.sequence_number)
    assert (REASON, REASON, 400) == (event.message, event.error.message, event.error.code)
    with pytest.raises(KeyError):
        asyncio.run(collect(KeyError("vLLM's")))


def test_a_stream_of_the_messages_api_ends_with_the_error() -> None:
    """In the words of the chat's stream, of which it is made."""
    pytest.importorskip("vllm")
    from vllm.entrypoints.anthropic.serving import AnthropicServingMessages

    async def collect() -> list[str]:
        convert = reading_errors(AnthropicServingMessages.message_stream_converter)
        serving = object.__new__(AnthropicServingMessages)
        return [event async for event in convert(serving, chat_chunks())]

    [event] = asyncio.run(collect())
    name, data = event.strip().split("\n")
    assert "event: error" == name
    assert REASON == json.loads(data.removeprefix("data: "))["error"]["message"]


async def chat_chunks(*begun: str) -> Any:
    """A chat's stream as vLLM writes it: what has begun, then the error."""
    from vllm.entrypoints.generate.base.serving import GenerateBaseServing

    error = client_error(REASON, HTTPStatus.BAD_REQUEST, is_pooling=False)
    serving = object.__new__(GenerateBaseServing)
    for chunk in begun:
        yield chunk
    yield f"data: {serving.create_streaming_error_response(error)}\n\n"
    yield "data: [DONE]\n\n"


def asked_by_cohere(*begun: str, is_cohere: bool = True) -> Any:
    """What a chat's handler answers to that route, or another."""
    pytest.importorskip("vllm")
    from vllm.entrypoints.generate.base.serving import GenerateBaseServing

    async def stock(_serving: Any) -> Any:
        return chat_chunks(*begun)

    serving: Any = object.__new__(GenerateBaseServing)
    if is_cohere:
        serving.create_chat_v2 = None
    return answering_cohere(stock)(serving)


def test_coheres_route_gets_an_error_in_place_of_a_stream_that_is_none() -> None:
    """So that it answers with status and reason; the chat's own route has its stream as ever."""

    async def ask() -> tuple[Any, list[str]]:
        stream = await asked_by_cohere(is_cohere=False)
        return await asked_by_cohere(), [chunk async for chunk in stream]

    answer, chunks = asyncio.run(ask())
    assert (400, REASON) == (answer.error.code, answer.error.message)
    assert [True, True] == [chunk.startswith("data: ") for chunk in chunks]


def test_an_error_in_a_stream_of_coheres_comes_in_its_own_words() -> None:
    """Behind what has begun."""

    async def ask() -> None:
        stream = await asked_by_cohere("begun")
        assert "begun" == await anext(stream)
        await anext(stream)

    with pytest.raises(Exception, match=REASON):
        asyncio.run(ask())


def background(work: Any, events: Any = None) -> Any:
    """What is kept of a background request of vLLM's own /v1/responses; `work` is its answer."""
    pytest.importorskip("vllm")
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    serving: Any = object.__new__(OpenAIServingResponses)
    kept = SimpleNamespace(status="queued", error=None)
    serving.response_store, serving.event_store = {"r": kept}, {}
    serving.response_store_lock = asyncio.Lock()
    serving.responses_full_generator = serving.responses_stream_generator = work
    runs = OpenAIServingResponses
    run = runs._run_background_request_stream if events else runs._run_background_request
    asyncio.run(failing_in_background(run)(serving, SimpleNamespace(request_id="r")))
    return kept


def test_a_request_that_fails_in_the_background_is_kept_as_failed() -> None:
    """With its reason, whether it raised or its stream ended with the error."""

    async def raise_it(*_: Any) -> Any:
        raise client_error(REASON, HTTPStatus.BAD_REQUEST, is_pooling=False)

    async def stream_it(*_: Any) -> Any:
        yield SimpleNamespace(type="response.created")
        yield openai_error(REASON, "BadRequestError", HTTPStatus.BAD_REQUEST, type="error")

    for kept in (background(raise_it), background(stream_it, events=True)):
        assert ("failed", "BadRequestError") == (kept.status, kept.error["code"])
        assert REASON == kept.error["message"]


def test_whoever_follows_a_failed_request_is_told_its_end() -> None:
    """vLLM waits for a completion that never comes."""
    pytest.importorskip("vllm")
    from vllm.entrypoints.openai.responses.serving import OpenAIServingResponses

    serving: Any = object.__new__(OpenAIServingResponses)
    last = SimpleNamespace(type="error")
    serving.event_store = {"r": (deque([SimpleNamespace(type="a"), last]), asyncio.Event())}
    follow = ending_with_the_error(OpenAIServingResponses.responses_background_stream_generator)

    async def collect() -> list[Any]:
        return [event.type async for event in follow(serving, "r")]

    assert ["a", "error"] == asyncio.run(asyncio.wait_for(collect(), 30.0))


@pytest.mark.parametrize(
    ("status", "lines"),
    [
        (HTTPStatus.BAD_REQUEST, 0),
        (HTTPStatus.CONFLICT, 0),
        (HTTPStatus.SERVICE_UNAVAILABLE, 0),
        (HTTPStatus.INTERNAL_SERVER_ERROR, 2),
    ],
)
def test_a_clients_error_is_no_line_of_the_log(status: HTTPStatus, lines: int) -> None:
    """Neither as a traceback nor as the answer that was given, nor one that is told to ask again as the server ends."""
    pytest.importorskip("vllm")
    told: list[str] = []
    handler = logging.Handler()
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]  # a list
    logger = logging.getLogger("vllm")
    logger.addHandler(handler)
    try:
        leave_out_of_log()
        try:
            raise http_error(REASON, status)
        except Exception:
            logging.getLogger("vllm.somewhere").exception("Error in a stream")
        refusal = openai_error(REASON, "SomeError", status)
        logging.getLogger("vllm.somewhere").error("Error with model %s", refusal)
        assert lines == len(told)
        logging.getLogger("vllm.somewhere").error("%s of %d", "a", 2)
        assert "a of 2" == told[-1]
    finally:
        logger.removeHandler(handler)
