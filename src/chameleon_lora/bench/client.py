"""Sends one streaming completion and notes when each piece of the answer came."""

from collections.abc import Callable
from dataclasses import dataclass, field
from http import HTTPStatus

import aiohttp
import msgspec

from chameleon_lora.bench.completion import CompletionRequest, EncodedCompletion
from chameleon_lora.bench.event_stream import EventStream
from chameleon_lora.metrics.errors import Cause

Clock = Callable[[], float]
_SHOWN_CHARACTERS = 300
_DONE = b"[DONE]"
_JSON = {"Content-Type": "application/json"}


@dataclass(slots=True)
class Answer:
    """What has come so far of one answer; filled by `stream_completion`, times by its clock.

    Attributes:
        token_times_s: when the bytes of each chunk with a token were read.
        usage: (prompt, output) tokens as the server counts them, None until it says.
        error: why the request failed, None if it has not; begins with a `Cause`.
        id: the server's own name for it, None until it says.
        token_ids: the tokens themselves, if they were asked for.
    """

    token_times_s: list[float] = field(default_factory=list)
    usage: tuple[int, int] | None = None
    error: str | None = None
    id: str | None = None
    token_ids: list[int] = field(default_factory=list)


@dataclass(slots=True)
class ConnectionUse:
    """What one request did with its connection: the context that `open_session` traces.

    Attributes:
        is_reused: it had carried another request before.
        has_answered: the server's answer has begun.
    """

    is_reused: bool = False
    has_answered: bool = False


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
    await stream_call(session, base_url, request.call(), answer, clock)


async def stream_call(
    session: aiohttp.ClientSession,
    base_url: str,
    call: EncodedCompletion,
    answer: Answer,
    clock: Clock,
) -> None:
    """Fills `answer` for a completion that is encoded already.

    A server may hang up on a connection that has been idle just as the next request is on its way
    there. So a request that ends without a word on a connection that was used before is sent once
    more, on one of its own: as HTTP clients do, though the server may have taken the first.
    """
    use = ConnectionUse()
    error = await _try_call(session, f"{base_url}{call.path}", call, answer, clock, use)
    if error is not None and use.is_reused and not use.has_answered and _has_hung_up(error):
        connector = aiohttp.TCPConnector(force_close=True)
        async with aiohttp.ClientSession(
            connector=connector, headers=session.headers, timeout=session.timeout
        ) as fresh:
            error = await _try_call(fresh, f"{base_url}{call.path}", call, answer, clock, use)
    if error is not None:
        answer.error = _failure(error)


async def _try_call(
    session: aiohttp.ClientSession,
    url: str,
    call: EncodedCompletion,
    answer: Answer,
    clock: Clock,
    use: ConnectionUse,
) -> Exception | None:
    """Sends it; what went wrong with the connection, or None."""
    try:
        async with session.post(
            url, data=call.body, headers=_JSON, allow_redirects=False, trace_request_ctx=use
        ) as response:
            use.has_answered = True
            await _read(response, call.model, answer, clock)
    except (aiohttp.ClientError, OSError, ValueError) as error:
        return error
    return None


async def _read(response: aiohttp.ClientResponse, model: str, answer: Answer, clock: Clock) -> None:
    """Takes in the answer, a stream or not."""
    if response.status != HTTPStatus.OK:
        answer.error = await _refusal(response, model)
    elif response.content_type in ("text/html", "application/json"):
        answer.error = Cause.NOT_OPENAI.error(await _reply(response))
    else:
        await _read_stream(response, answer, clock)


def _has_hung_up(error: Exception) -> bool:
    """Did the server close the connection?"""
    return isinstance(error, aiohttp.ClientConnectionError | ConnectionError)


def _failure(error: Exception) -> str:
    """The cause of an error of the connection."""
    what = f"{type(error).__name__}: {error}"
    match error:
        case aiohttp.ClientConnectorError(os_error=ConnectionRefusedError()):
            return Cause.REFUSED.error(str(error))
        case aiohttp.ClientConnectorError() | aiohttp.InvalidURL():
            return Cause.UNREACHABLE.error(what)
        case aiohttp.ClientResponseError() | ValueError():  # what came is no HTTP, or no event
            return Cause.NOT_OPENAI.error(what)
        case aiohttp.ClientConnectionError() | aiohttp.ClientPayloadError() | ConnectionError():
            return Cause.LOST.error(what)
        case _:
            return Cause.OTHER.error(what)


async def _refusal(response: aiohttp.ClientResponse, model: str) -> str:
    """The server's words after the status and the model, which it may not know."""
    text = _shown(await response.read())
    return f"{Cause.HTTP.value} {response.status} for {model!r}: {text}"


async def _reply(response: aiohttp.ClientResponse) -> str:
    """What came under 200 where a stream of events was expected."""
    content = await response.read()
    if response.content_type == "text/html":
        return f"an HTML page: {_shown(content)}"
    try:
        chunk = _decode(content)
    except ValueError:
        return f"JSON that answers no completion: {_shown(content)}"
    if chunk.choices is None:
        return f"JSON without choices: {_shown(content)}"
    return f"one whole reply where a stream was asked for: {_shown(content)}"


def _shown(content: bytes) -> str:
    return content.decode("utf8", errors="replace")[:_SHOWN_CHARACTERS].strip() or "nothing"


class _Delta(msgspec.Struct, gc=False):
    """What a chunk of a chat adds; models that think aloud use the other two."""

    role: str | None = None
    content: str | None = None
    reasoning: str | None = None
    reasoning_content: str | None = None


class _Choice(msgspec.Struct, gc=False):
    text: str | None = None
    delta: _Delta | None = None
    token_ids: list[int] | None = None
    finish_reason: str | None = None


class _Usage(msgspec.Struct, gc=False):
    prompt_tokens: int | None = None
    completion_tokens: int | None = None


class _Chunk(msgspec.Struct):
    """The fields of an event that a benchmark needs; the others are passed over unread."""

    id: str | None = None
    choices: list[_Choice] | None = None
    usage: _Usage | None = None
    error: object = None


_decode = msgspec.json.Decoder(_Chunk).decode


async def _read_stream(response: aiohttp.ClientResponse, answer: Answer, clock: Clock) -> None:
    """Reads server-sent events until `[DONE]`, and no further."""
    reader = _StreamReader(answer)
    events = EventStream()
    begin = b""
    while data := await response.content.readany():
        now_s = clock()
        if len(begin) < _SHOWN_CHARACTERS:
            begin += data
        for payload in events.feed(data):
            reader.take(payload, now_s)
            if reader.has_ended:
                return
    if events.unfinished() == _DONE:
        reader.take(_DONE, clock())
    elif reader.events:
        answer.error = Cause.BROKEN_OFF.error("it ended without [DONE]")
    else:
        what = f"{response.content_type} without an event: {_shown(begin)}"
        answer.error = Cause.NOT_OPENAI.error(what)


class _StreamReader:
    """Fills one answer, event by event.

    `events` counts those read; after the last one, for good or ill, it `has_ended`. A last chunk that
    only says why the answer ends may or may not hold a token; its time is kept apart until the
    server's own count tells.
    """

    def __init__(self, answer: Answer) -> None:
        self.events = 0
        self.has_ended = False
        self._answer = answer
        self._doubtful_s: float | None = None

    def take(self, payload: bytes, now_s: float) -> None:
        """Adds its tokens at this time, its usage or its error to the answer; `[DONE]` ends it."""
        self.events += 1
        if payload == _DONE:
            self._close()
            return
        try:
            chunk = _decode(payload)
        except ValueError as error:
            self._fail(Cause.NOT_OPENAI, f"an event of {_shown(payload)} ({error})")
            return
        if chunk.error is not None:
            self._fail(Cause.BROKEN_OFF, _shown(msgspec.json.encode(chunk.error)))
            return
        if chunk.choices:
            if self._answer.id is None:
                self._answer.id = chunk.id
            self._take_choice(chunk.choices[0], now_s)
        elif chunk.choices is None and chunk.usage is None:
            self._fail(Cause.NOT_OPENAI, f"an event without choices: {_shown(payload)}")
            return
        if (usage := chunk.usage) and usage.prompt_tokens is not None:
            self._answer.usage = (usage.prompt_tokens, usage.completion_tokens or 0)

    def _fail(self, cause: Cause, what: str) -> None:
        self._answer.error = cause.error(what)
        self.has_ended = True

    def _take_choice(self, choice: _Choice, now_s: float) -> None:
        """A chunk with text is a token; so is one without, if it says nothing else.

        Servers hold text back until it is whole UTF-8, or skip special tokens.
        """
        if choice.token_ids:
            self._answer.token_ids += choice.token_ids
        delta = choice.delta
        if delta is None:
            text, is_other = choice.text, False
        else:
            text = delta.content or delta.reasoning or delta.reasoning_content
            is_other = delta.role is not None or delta.content is None
        if text:
            self._answer.token_times_s.append(now_s)
        elif choice.finish_reason is not None:
            self._doubtful_s = now_s
        elif not is_other:
            self._answer.token_times_s.append(now_s)

    def _close(self) -> None:
        """After `[DONE]`: the doubtful last chunk counts as a token if the server's count says so."""
        self.has_ended = True
        answer, times_s = self._answer, self._answer.token_times_s
        if self._doubtful_s is not None and answer.usage and answer.usage[1] > len(times_s):
            times_s.append(self._doubtful_s)
        if not times_s:
            answer.error = Cause.NO_TOKEN.error("the answer was whole, and empty")
