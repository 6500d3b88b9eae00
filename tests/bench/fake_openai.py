"""A real HTTP server that answers like an OpenAI completion server.

In the test's own process as `FakeOpenAI`, or as a program: fake_openai.py PORT.
"""

import asyncio
import json
import sys
from dataclasses import dataclass, field
from types import TracebackType
from typing import Any, Self

from aiohttp import web


@dataclass(slots=True)
class FakeOpenAI:
    """Streams one chunk a token, as fast as it can, and keeps each body it was sent.

    Attributes:
        failing_model: this model's requests get HTTP 404.
        breaking_model: this model's streams end with an error event after one token.
        cut_model: this model's streams end after one token without [DONE].
        silent_model: this model's requests get no answer until the server is closed.
    """

    failing_model: str = "failing"
    breaking_model: str = "breaking"
    cut_model: str = "cut"
    silent_model: str = "silent"
    bodies: list[dict[str, Any]] = field(default_factory=list)
    base_url: str = ""
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
        """The two routes that the benchmark uses."""
        app = web.Application()
        app.router.add_get("/health", _healthy)
        app.router.add_post("/v1/completions", self._complete)
        return app

    async def _complete(self, request: web.Request) -> web.StreamResponse:
        body = await request.json()
        self.bodies.append(body)
        if body["model"] == self.failing_model:
            return web.json_response({"error": {"message": "no such model"}}, status=404)
        response = web.StreamResponse(headers={"Content-Type": "text/event-stream"})
        await response.prepare(request)
        await self._stream(response, body)
        return response

    async def _stream(self, response: web.StreamResponse, body: dict[str, Any]) -> None:
        model, tokens = body["model"], body["max_tokens"]
        if model == self.silent_model:
            await self._closing.wait()
            return
        if model in (self.breaking_model, self.cut_model):
            await _send(response, {"choices": [{"text": "x"}]})
            if model == self.breaking_model:
                await _send(response, {"error": {"message": "engine died"}})
            return
        for _ in range(tokens):
            await _send(response, {"choices": [{"text": "x"}], "usage": None})
        usage = {"prompt_tokens": len(body["prompt"]), "completion_tokens": tokens}
        await _send(response, {"choices": [], "usage": usage})
        await response.write(b"data: [DONE]\n\n")


async def _healthy(_: web.Request) -> web.Response:
    return web.Response()


async def _send(response: web.StreamResponse, chunk: dict[str, Any]) -> None:
    await response.write(b"data: " + json.dumps(chunk).encode() + b"\n\n")


if __name__ == "__main__":
    web.run_app(FakeOpenAI().application(), host="127.0.0.1", port=int(sys.argv[1]), print=None)
