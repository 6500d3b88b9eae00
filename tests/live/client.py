"""Asks a real server for completions and reads back token ids."""

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import aiohttp

T = TypeVar("T")
LIMIT_S = 120.0
_POLL_S = 0.05
OK = 200


@dataclass(frozen=True, slots=True)
class Question:
    """One greedy completion of exactly `tokens` tokens; `prompt` holds token ids."""

    model: str
    prompt: tuple[int, ...]
    tokens: int = 24

    def body(self, *, stream: bool) -> dict[str, Any]:
        """The JSON body of POST /v1/completions."""
        return {
            "model": self.model,
            "prompt": list(self.prompt),
            "max_tokens": self.tokens,
            "ignore_eos": True,
            "temperature": 0,
            "return_token_ids": True,
            "stream": stream,
        }


@dataclass(frozen=True, slots=True)
class Reply:
    """What came back: tokens, or the `error` object of OpenAI's form, or first some, then the other."""

    status: int
    tokens: tuple[int, ...] = ()
    error: dict[str, Any] | None = None


@dataclass(frozen=True, slots=True)
class Connection:
    """One client of one server."""

    session: aiohttp.ClientSession
    url: str

    async def ask(self, question: Question) -> Reply:
        """The whole answer in one piece."""
        body = question.body(stream=False)
        async with self.session.post(f"{self.url}/v1/completions", json=body) as response:
            found = await response.json()
            if response.status != OK:
                return Reply(response.status, error=found["error"])
            return Reply(OK, tuple(found["choices"][0]["token_ids"]))

    async def ask_all(self, questions: Sequence[Question], at_once: int) -> list[Reply]:
        """The replies in the questions' order, so many under way at a time."""
        seats = asyncio.Semaphore(at_once)

        async def ask_in_turn(question: Question) -> Reply:
            async with seats:
                return await self.ask(question)

        return list(await asyncio.gather(*map(ask_in_turn, questions)))

    async def stream(self, question: Question, begun: asyncio.Event | None = None) -> Reply:
        """The answer token by token; `begun` is set once its third token is there."""
        body = question.body(stream=True)
        tokens: list[int] = []
        error: dict[str, Any] | None = None
        async with self.session.post(f"{self.url}/v1/completions", json=body) as response:
            if response.status != OK:
                return Reply(response.status, error=(await response.json())["error"])
            async for chunk in _chunks(response):
                if "error" in chunk:
                    error = chunk["error"]
                    break
                tokens += chunk["choices"][0]["token_ids"]
                if begun is not None and len(tokens) >= 3:
                    begun.set()
        return Reply(OK, tuple(tokens), error)

    @asynccontextmanager
    async def streaming(self, questions: Sequence[Question]) -> AsyncIterator[list[list[Reply]]]:
        """Streams each question again and again while the body runs: one is always under way.

        The body begins once each has its third token. What it is given fills up: a list for each
        question, complete at the end, whose last reply may be a refusal.
        """
        replies: list[list[Reply]] = [[] for _ in questions]
        started = [asyncio.Event() for _ in questions]
        is_over = asyncio.Event()

        async def repeat(place: int) -> None:
            while not is_over.is_set():
                replies[place].append(await self.stream(questions[place], started[place]))
                if replies[place][-1].status != OK:
                    return

        async with asyncio.TaskGroup() as streams:
            for place in range(len(questions)):
                streams.create_task(repeat(place))
            await asyncio.gather(*(begun.wait() for begun in started))
            try:
                yield replies
            finally:
                is_over.set()

    async def hang_up(self, question: Question, after_tokens: int) -> None:
        """Takes so many tokens, then closes the connection without a word."""
        body = question.body(stream=True)
        seen = 0
        async with self.session.post(f"{self.url}/v1/completions", json=body) as response:
            async for chunk in _chunks(response):
                seen += len(chunk["choices"][0]["token_ids"])
                if seen >= after_tokens:
                    response.close()
                    return
        raise AssertionError(f"the stream ended after {seen} tokens, before it could be cut")

    async def post(self, path: str, body: dict[str, Any]) -> tuple[int, str]:
        """Status and text of any other POST."""
        async with self.session.post(f"{self.url}{path}", json=body) as response:
            return response.status, await response.text()

    async def get(self, path: str) -> tuple[int, str]:
        """Status and text of any GET."""
        async with self.session.get(f"{self.url}{path}") as response:
            return response.status, await response.text()

    async def models(self) -> dict[str, dict[str, Any]]:
        """What GET /v1/models lists, by id."""
        async with self.session.get(f"{self.url}/v1/models") as response:
            return {card["id"]: card for card in (await response.json())["data"]}

    async def metric(self, name: str) -> float:
        """The sum over all series of this name in GET /metrics."""
        async with self.session.get(f"{self.url}/metrics") as response:
            lines = (await response.text()).splitlines()
        return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith(f"{name}{{"))


async def until(is_so: Callable[[], Awaitable[bool]], limit_s: float = 60.0) -> None:
    """Returns once it is so; TimeoutError if that takes longer than the limit."""
    async with asyncio.timeout(limit_s):
        while not await is_so():
            await asyncio.sleep(_POLL_S)


async def state(client: Connection) -> Any:
    """GET /chameleon/state."""
    status, text = await client.get("/chameleon/state")
    assert status == OK
    return json.loads(text)


async def adapters_known(client: Connection) -> int:
    """How many adapters the engine knows, wherever they are."""
    return sum(tier["adapters"] for tier in (await state(client))["tiers"].values())


async def busy(client: Connection) -> int:
    """Requests that wait, load or run."""
    lanes = (await state(client))["lanes"]
    return sum(lane["waiting"] + lane["loading"] + lane["running"] for lane in lanes)


async def is_idle(client: Connection) -> bool:
    """Whether the engine runs nothing and nothing waits."""
    running = await client.metric("vllm:num_requests_running")
    waiting = await client.metric("vllm:num_requests_waiting")
    return (0.0, 0.0) == (running, waiting)


def with_client(url: str, work: Callable[[Connection], Awaitable[T]]) -> T:
    """What `work` answers, given a connection of its own."""

    async def run() -> T:
        timeout = aiohttp.ClientTimeout(total=LIMIT_S)
        connector = aiohttp.TCPConnector(limit=0)
        async with aiohttp.ClientSession(timeout=timeout, connector=connector) as session:
            return await work(Connection(session, url))

    return asyncio.run(run())


async def _chunks(response: aiohttp.ClientResponse) -> Any:
    """The JSON of each `data:` line, up to `[DONE]`."""
    async for line in response.content:
        data = line.removeprefix(b"data:").strip()
        if data == b"[DONE]":
            return
        if data:
            yield json.loads(data)
