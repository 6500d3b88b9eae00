"""What one HTTP request may take of a server: how long its body is and takes, and how much comes back.

| | answer |
| --- | --- |
| a body above the limit, announced or not | 413 |
| a body of which nothing comes for IDLE_S | 408 |
| a body that is unfinished when the server ends | 503 |
| whatever else is 503 | says when to ask again |
| an error that repeats what a client sent | cut |

The middleware stands outside of all other, with tenants and without. It acts where a body is asked for, so
that whoever needs a key, or has no requests left, is told so before anything is read.
"""

import asyncio
import json
from collections.abc import Awaitable, Callable, Iterable, MutableMapping
from http import HTTPStatus
from typing import Any

from chameleon_lora.engine_vllm.api.shutdown import SHUTDOWN_WORDS, is_shutting_down
from chameleon_lora.engine_vllm.log_limit import TEXT_LIMIT, cut
from chameleon_lora.settings import ServingSettings

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Header = tuple[bytes, bytes]

IDLE_S, LOOK_S = 30.0, 1.0  # without a byte, at the most; between two looks whether the server ends
TENANTS_LEAST, TENANTS_MEDIA, OTHERS = 2 << 20, 32 << 20, 256 << 20
BYTES_PER_TOKEN = 64  # of text in JSON: several prompts may come in one body
IN_THREAD = 1 << 16  # bytes of a body that is parsed beside the event loop
MOST_DIGITS = 20  # of a length that is read: more are above any limit
CLOSE = (b"connection", b"close")
RETRY_AFTER = b"retry-after"
GONE = {"type": "http.disconnect"}
KINDS = {
    HTTPStatus.BAD_REQUEST: "BadRequestError",
    HTTPStatus.UNAUTHORIZED: "AuthenticationError",
    HTTPStatus.NOT_FOUND: "NotFoundError",
    HTTPStatus.REQUEST_TIMEOUT: "RequestTimeoutError",
    HTTPStatus.REQUEST_ENTITY_TOO_LARGE: "RequestEntityTooLargeError",
    HTTPStatus.TOO_MANY_REQUESTS: "RateLimitError",
    HTTPStatus.SERVICE_UNAVAILABLE: "ServiceUnavailableError",
}


class BodyLimits:
    """ASGI middleware of one API server.

    `most_bytes` and `is_ending` are asked anew for each request.
    """

    def __init__(
        self,
        app: Any,
        most_bytes: Callable[[], int],
        is_ending: Callable[[], bool],
        idle_s: float = IDLE_S,
    ) -> None:
        self._app = app
        self.most_bytes = most_bytes
        self.is_ending = is_ending
        self.idle_s = idle_s

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """The app's answer, or a refusal in OpenAI's form."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        exchange = _Exchange(self, scope, receive, send)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except asyncio.CancelledError:  # by the HTTP server, which does not wait any longer
            await exchange.refuse(HTTPStatus.SERVICE_UNAVAILABLE, SHUTDOWN_WORDS, CLOSE)
        except Exception:
            if not exchange.is_refused:  # else it is about the body that did not come
                raise


class _Exchange:
    """One request and its answer. Owner: the call of `BodyLimits`.

    Invariant: once refused, nothing of the app's reaches the client, and the app hears that it has gone.
    """

    def __init__(self, limits: BodyLimits, scope: Message, receive: Receive, send: Send) -> None:
        self._limits = limits
        self._scope, self._receive, self._send = scope, receive, send
        self._most = self._left = 0
        self._has_begun = self._is_whole = self._is_answered = False
        self._error_start: Message | None = None
        self._error = bytearray()
        self.is_refused = False

    async def receive(self) -> Message:
        """As ASGI's; a client that is refused has gone."""
        if self._is_whole:
            return await self._receive()
        message = None if self.is_refused else await self._next()
        if message is None:
            return GONE
        self._left -= len(message.get("body", b""))
        if self._left < 0:
            await self._refuse_size(f"more than {self._most}")
            return GONE
        self._is_whole = not message.get("more_body")
        return message

    async def _next(self) -> Message | None:
        """The next piece of the body, or None if the request has been refused."""
        if not self._has_begun:
            self._has_begun = True
            self._most = self._left = self._limits.most_bytes()
            announced = (header_of(self._scope, b"content-length") or b"")[:MOST_DIGITS]
            if announced.isdigit() and int(announced) > self._most:
                await self._refuse_size(announced.decode())
                return None
        elif self._limits.is_ending():
            await self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, SHUTDOWN_WORDS, CLOSE)
            return None
        return await self._awaited()

    async def _awaited(self) -> Message | None:
        idle_s, look_s = self._limits.idle_s, min(LOOK_S, self._limits.idle_s)
        for _ in range(round(idle_s / look_s)):
            try:
                async with asyncio.timeout(look_s):
                    return await self._receive()
            except TimeoutError:
                if self._limits.is_ending():
                    await self.refuse(HTTPStatus.SERVICE_UNAVAILABLE, SHUTDOWN_WORDS, CLOSE)
                    return None
        reason = f"Nothing of the body came for {idle_s:g} s: send all of what was announced."
        await self.refuse(HTTPStatus.REQUEST_TIMEOUT, reason, CLOSE)
        return None

    async def _refuse_size(self, size: str) -> None:
        reason = (
            f"The body has {size} bytes, the most is {self._most}: send less at a time, or have "
            "serving.max_body_bytes raised."
        )
        await self.refuse(HTTPStatus.REQUEST_ENTITY_TOO_LARGE, reason)

    async def refuse(self, status: HTTPStatus, reason: str, *headers: Header) -> None:
        """Afterwards the client has this answer, unless it has the beginning of another."""
        self.is_refused = True
        if not self._is_answered:
            self._is_answered = True
            await refuse(self._scope, self._send, status, reason, *headers)

    async def send(self, message: Message) -> None:
        """As ASGI's; of errors, nothing that a client sent comes back at any length."""
        if self.is_refused:
            return
        if message["type"] == "http.response.start" and message["status"] >= HTTPStatus.BAD_REQUEST:
            self._error_start = message
            return
        if self._error_start is None:
            self._is_answered = True
            await self._send(message)
            return
        self._error += message.get("body", b"")
        if not message.get("more_body"):
            start, self._error_start = self._error_start, None
            self._is_answered = True
            await self._send_error(start, bytes(self._error))

    async def _send_error(self, start: Message, body: bytes) -> None:
        if start["status"] == HTTPStatus.SERVICE_UNAVAILABLE:
            start = {**start, "headers": with_retry(start["headers"])}
        if len(body) > TEXT_LIMIT:
            body = _shortened(body)
            kept = [(key, v) for key, v in start["headers"] if key.lower() != b"content-length"]
            start = {**start, "headers": [*kept, (b"content-length", str(len(body)).encode())]}
        await self._send(start)
        await self._send({"type": "http.response.body", "body": body})


def _shortened(body: bytes) -> bytes:
    try:
        return json.dumps(_cut_all(json.loads(body))).encode()
    except (ValueError, RecursionError):
        return cut(body.decode(errors="replace")).encode()


def _cut_all(value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _cut_all(item) for key, item in value.items()}
    if isinstance(value, list):
        return [_cut_all(item) for item in value]
    return cut(value) if isinstance(value, str) else value


async def refuse(
    scope: Message, send: Send, status: HTTPStatus, reason: str, *headers: Header
) -> None:
    """OpenAI's form, as vLLM writes it."""
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008, "reason": reason})
        return
    error = {"message": reason, "type": KINDS[status], "param": None, "code": status.value}
    body = json.dumps({"error": error}).encode()
    if status == HTTPStatus.UNAUTHORIZED:
        headers = (*headers, (b"www-authenticate", b"Bearer"))
    start = [
        (b"content-type", b"application/json"),
        (b"content-length", str(len(body)).encode()),
        *headers,
    ]
    if status == HTTPStatus.SERVICE_UNAVAILABLE:
        start = with_retry(start)
    await send({"type": "http.response.start", "status": status.value, "headers": start})
    await send({"type": "http.response.body", "body": body})


def with_retry(headers: Iterable[Header]) -> list[Header]:
    """An answer's headers, which say when to ask again: as they do themselves, or in a second."""
    given = list(headers)
    is_told = any(key.lower() == RETRY_AFTER for key, _ in given)
    return given if is_told else [*given, (RETRY_AFTER, b"1")]


def header_of(scope: Message, name: bytes) -> bytes | None:
    """The value of a request's header, if it is there once: two are none."""
    values = [value for key, value in scope["headers"] if key.lower() == name]
    return values[0] if len(values) == 1 else None


async def read(receive: Receive) -> bytes | None:
    """All of a body, or None if the client goes before."""
    text = bytearray()
    while True:
        message = await receive()
        if message["type"] != "http.request":
            return None
        text += message.get("body", b"")
        if not message.get("more_body"):
            return bytes(text)


async def parsed(text: bytes, dropped: Iterable[str]) -> tuple[dict[str, Any], bytes] | None:
    """The JSON object that a body is, and its text anew without these keys; None if it is none.

    A long one is parsed beside the event loop, which goes on between the steps of it.
    """
    if len(text) <= IN_THREAD:
        return _parsed(text, dropped)
    return await asyncio.to_thread(_parsed, text, dropped)


def _parsed(text: bytes, dropped: Iterable[str]) -> tuple[dict[str, Any], bytes] | None:
    try:
        body = json.loads(text)
        if not isinstance(body, dict):
            return None
        kept = {key: value for key, value in body.items() if key not in dropped}
        return body, json.dumps(kept).encode()
    except (ValueError, RecursionError):
        return None


def replay(body: bytes, receive: Receive) -> Receive:
    """The body in one piece, then what comes after it: that the client has gone."""
    left: Iterable[Message] = iter([{"type": "http.request", "body": body, "more_body": False}])

    async def replay() -> Message:
        for message in left:
            return message
        return await receive()

    return replay


def model_of(app: Any) -> Any | None:
    """vLLM's ModelConfig of the engine behind a FastAPI app, or None while there is none."""
    config = getattr(_engine_of(app), "vllm_config", None)
    return getattr(config, "model_config", None)


def _engine_of(app: Any) -> Any | None:
    return getattr(getattr(app, "state", None), "engine_client", None)


def most_bytes(serving: ServingSettings, model: Any | None) -> int:
    """How long a request's body may be, by the settings and what the model reads."""
    if serving.max_body_bytes is not None:
        return serving.max_body_bytes
    if serving.tenants is None or model is None:
        return OTHERS
    if model.is_multimodal_model:
        return TENANTS_MEDIA
    return max(TENANTS_LEAST, BYTES_PER_TOKEN * int(model.max_model_len))


def limit(app: Any, serving: ServingSettings) -> None:
    """Afterwards the FastAPI app keeps to these limits, outside of all middleware it has by now."""
    stock = app.build_middleware_stack
    app.build_middleware_stack = lambda: BodyLimits(
        stock(),
        lambda: most_bytes(serving, model_of(app)),
        lambda: is_shutting_down(_engine_of(app)),
    )
