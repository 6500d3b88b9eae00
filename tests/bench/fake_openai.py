"""A real HTTP server that answers like an OpenAI server with adapters.

In the test's own process as `FakeOpenAI`, or as a program that may be killed:
fake_openai.py PORT [--tokens-per-s N] [--adapters NAME,NAME].
"""

import argparse
import asyncio
import itertools
import json
import os
import signal
from collections import defaultdict
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import web

BASE_MODEL = "base"
WHEEL_SLOTS = 10


@dataclass(slots=True)
class FakeOpenAI:
    """Streams one chunk a token and keeps each body it was sent.

    Attributes:
        tokens_per_s: of each stream; None is as fast as it can.
        adapters: what it serves beside the base model; if there are none, it serves any model.
        api_key: what clients must show, None if they need not.
        is_strict: it refuses what OpenAI does not know.
        metrics: the page at /metrics; None is 404, as for the next two.
        state: what /chameleon/state answers.
        tier: where adapters are when requests arrive, for /chameleon/arrivals.
        has_hanging_pages: those three get no answer until the server is closed.
        raw: what the stream of `raw_model` consists of.
        failing_model: this model's requests get HTTP 404.
        breaking_model: this model's streams end with an error event after one token.
        cut_model: this model's streams end after one token without [DONE].
        silent_model: this model's requests get no answer until the server is closed.
        deadly_model: after one token of this model's streams the program kills itself.
        html_model, json_model, whole_model, redirected_model: no stream but a page, JSON that is
            not OpenAI's, a whole answer, or a redirection.
    """

    tokens_per_s: float | None = None
    adapters: tuple[str, ...] = ()
    api_key: str | None = None
    is_strict: bool = False
    metrics: str | None = None
    state: dict[str, Any] | None = None
    tier: str | None = None
    has_hanging_pages: bool = False
    raw: bytes = b""
    failing_model: str = "failing"
    breaking_model: str = "breaking"
    cut_model: str = "cut"
    silent_model: str = "silent"
    deadly_model: str = "deadly"
    html_model: str = "html"
    json_model: str = "json"
    whole_model: str = "whole"
    redirected_model: str = "redirected"
    raw_model: str = "raw"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    asked: list[str] = field(default_factory=list)
    arrivals: list[tuple[str, str]] = field(default_factory=list)
    written_s: defaultdict[str, list[float]] = field(default_factory=lambda: defaultdict(list))
    base_url: str = ""
    _ids: Iterator[int] = field(default_factory=itertools.count)
    _wheel: "Wheel | None" = None
    _runner: web.AppRunner | None = None
    _closing: asyncio.Event = field(default_factory=asyncio.Event)

    async def __aenter__(self) -> Self:
        """Listens on a free port of 127.0.0.1."""
        self._runner = web.AppRunner(self.application())
        await self._runner.setup()
        await web.TCPSite(self._runner, "127.0.0.1", 0).start()
        host, port = self._runner.addresses[0][:2]
        self.base_url = f"http://{host}:{port}"
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._closing.set()
        assert self._runner is not None
        await self._runner.cleanup()

    def application(self) -> web.Application:
        """The routes that the benchmark uses, and /written, which says when tokens were."""
        app = web.Application()
        app.router.add_get("/health", _healthy)
        app.router.add_get("/v1/models", self._models)
        app.router.add_post("/v1/completions", self._complete)
        app.router.add_post("/v1/chat/completions", self._complete)
        app.router.add_get("/metrics", self._page)
        app.router.add_get("/chameleon/state", self._page)
        app.router.add_get("/chameleon/arrivals", self._page)
        app.router.add_get("/written", self._written)
        return app

    async def _models(self, _: web.Request) -> web.Response:
        rows = [{"id": BASE_MODEL, "object": "model", "parent": None}]
        rows += [{"id": name, "object": "model", "parent": BASE_MODEL} for name in self.adapters]
        return web.json_response({"object": "list", "data": rows})

    async def _written(self, _: web.Request) -> web.Response:
        """By model: when each token was handed to the kernel, by the clock of all processes."""
        return web.json_response(self.written_s)

    async def _page(self, request: web.Request) -> web.Response:
        """What the server tells of itself, each page for as long as it has it."""
        self.asked.append(request.path)
        if self.has_hanging_pages:
            await self._closing.wait()
        if request.path == "/metrics" and self.metrics is not None:
            return web.Response(text=self.metrics)
        if request.path == "/chameleon/state" and self.state is not None:
            return web.json_response(self.state)
        if request.path == "/chameleon/arrivals" and self.tier is not None:
            after = int(request.query["after"])
            return web.json_response(
                {"next": len(self.arrivals), "arrivals": self.arrivals[after:]}
            )
        return web.json_response({"detail": "Not Found"}, status=404)

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if (refusal := self._refusal(request, body)) is not None:
            return refusal
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        answer = FakeAnswer(f"cmpl-{next(self._ids):x}", body, is_chat="chat" in request.path)
        if self.tier is not None:
            self.arrivals.append((f"{answer.id}-0-1f2e3d", self.tier))
        await self._stream(response, request, answer)
        return response

    def _refusal(self, request: web.Request, body: dict[str, Any]) -> web.Response | None:
        """An answer other than a stream."""
        model = body["model"]
        if self.api_key and request.headers.get("Authorization") != f"Bearer {self.api_key}":
            return web.json_response({"error": "Unauthorized"}, status=401)
        if self.is_strict and "ignore_eos" in body:
            return web.json_response({"error": {"message": "unknown: ignore_eos"}}, status=400)
        unknown = self.adapters and model not in (BASE_MODEL, *self.adapters)
        if model == self.failing_model or unknown:
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        return self._other_reply(model)

    def _other_reply(self, model: str) -> web.Response | None:
        """What no OpenAI server answers, or not to those who ask for a stream."""
        if model == self.html_model:
            return web.Response(text="<html>It works!</html>", content_type="text/html")
        if model == self.json_model:
            return web.json_response({"status": "fine"})
        if model == self.whole_model:
            return web.json_response({"id": "cmpl", "choices": [{"text": "all at once"}]})
        if model == self.redirected_model:
            return web.Response(status=302, headers={"Location": "/health"}, text="elsewhere")
        return None

    async def _stream(
        self, response: web.StreamResponse, request: web.Request, answer: "FakeAnswer"
    ) -> None:
        model = answer.model
        if model == self.silent_model:
            await self._closing.wait()
            return
        if model == self.raw_model:
            await response.write(self.raw)
            return
        await response.write(answer.begin)
        if model in (self.breaking_model, self.cut_model, self.deadly_model):
            await response.write(answer.token)
            if model == self.breaking_model:
                await response.write(_event({"error": {"message": "engine died"}}))
            if model == self.deadly_model:
                os.kill(os.getpid(), signal.SIGKILL)
            return
        if self.tokens_per_s is None:
            for _ in range(answer.tokens):
                await response.write(answer.token)
        else:
            if self._wheel is None:
                self._wheel = Wheel(self.tokens_per_s)
            assert request.transport is not None
            await self._wheel.ride(request.transport, answer, self.written_s[model])
        await response.write(answer.end)


class FakeAnswer:
    """The events of one answer, encoded once."""

    def __init__(self, answer_id: str, body: dict[str, Any], *, is_chat: bool) -> None:
        self.id, self.model, self.tokens = answer_id, body["model"], body["max_tokens"]
        prompt = body["messages"][0]["content"].split() if is_chat else body["prompt"]
        if isinstance(prompt, str):
            prompt = prompt.split()
        text = {"delta": {"content": "x"}} if is_chat else {"text": "x"}
        rest = {"index": 0, "logprobs": None, "finish_reason": None}
        head = {"id": answer_id, "object": "text_completion", "created": 0, "model": self.model}
        self.token = _event({**head, "choices": [{**rest, **text}], "usage": None})
        role = {"delta": {"role": "assistant", "content": ""}}
        self.begin = _event({**head, "choices": [{**rest, **role}]}) if is_chat else b": hello\n\n"
        usage = {"prompt_tokens": len(prompt), "completion_tokens": self.tokens}
        self.end = _event({**head, "choices": [], "usage": usage}) + b"data: [DONE]\n\n"


@dataclass(slots=True)
class _Rider:
    """A stream under way; `frame` is a token in HTTP's chunked encoding."""

    transport: asyncio.Transport
    frame: bytes
    left: int
    written_s: list[float]
    has_ended: asyncio.Event = field(default_factory=asyncio.Event)


class Wheel:
    """Writes a token to each stream once a turn, straight to its socket, all streams on one timer.

    A stream joins the slot that is next, so streams that begin at different times stay apart.
    """

    def __init__(self, turns_per_s: float) -> None:
        self._loop = asyncio.get_running_loop()
        self._slot_s = 1.0 / turns_per_s / WHEEL_SLOTS
        self._slots: list[list[_Rider]] = [[] for _ in range(WHEEL_SLOTS)]
        self._start_s, self._count = self._loop.time(), 0
        self._turn()

    async def ride(
        self, transport: asyncio.Transport, answer: FakeAnswer, written_s: list[float]
    ) -> None:
        """Waits until all tokens of the answer are written."""
        frame = b"%x\r\n%b\r\n" % (len(answer.token), answer.token)
        rider = _Rider(transport, frame, answer.tokens, written_s)
        self._slots[self._count % WHEEL_SLOTS].append(rider)
        await rider.has_ended.wait()

    def _turn(self) -> None:
        slot = self._count % WHEEL_SLOTS
        self._count += 1
        for rider in self._slots[slot]:
            rider.written_s.append(self._loop.time())
            rider.transport.write(rider.frame)
            rider.left -= 1
            if rider.left <= 0 or rider.transport.is_closing():
                rider.has_ended.set()
        self._slots[slot] = [rider for rider in self._slots[slot] if not rider.has_ended.is_set()]
        self._loop.call_at(self._start_s + self._count * self._slot_s, self._turn)


async def _healthy(_: web.Request) -> web.Response:
    return web.Response()


def _event(chunk: dict[str, Any]) -> bytes:
    return b"data: " + json.dumps(chunk).encode() + b"\n\n"


def main() -> None:
    """Serves until it is killed."""
    parser = argparse.ArgumentParser()
    parser.add_argument("port", type=int)
    parser.add_argument("--tokens-per-s", type=float)
    parser.add_argument("--adapters", default="")
    given = parser.parse_args()
    adapters = tuple(filter(None, given.adapters.split(",")))
    server = FakeOpenAI(tokens_per_s=given.tokens_per_s, adapters=adapters)
    web.run_app(
        server.application(), host="127.0.0.1", port=given.port, print=None, access_log=None
    )


if __name__ == "__main__":
    main()
