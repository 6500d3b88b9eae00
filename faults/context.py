"""What a fault finds: a running server, its client, and adapters that may be broken."""

import itertools
from collections.abc import Iterable
from dataclasses import dataclass
from functools import partial
from http import HTTPStatus
from pathlib import Path

import psutil

from chameleon_lora.servers.launching import BASE_MODEL
from faults.adapter_fixtures import SERVED, AdapterFixtures
from faults.client import Client, until
from faults.fault_injector import FaultInjector
from faults.greedy_request import GreedyReply, GreedyRequest, RequestEnd
from faults.load import KnownAnswers

ANY = "a0"
"""One of them, for a look at whether the server is well."""
VICTIM, OTHER = 5, 2
"""Weights for adapters that come and go, of one rank."""
SEEDS = (1, 2)
TOKENS, PROBE_TOKENS = 40, 4
LONG_SEED, LONG_TOKENS = 3, 560
LONG_TELLERS = (BASE_MODEL, "a0", "a1", "a2")


@dataclass(slots=True)
class FaultContext:
    """One server, as a fault meets it.

    Attributes:
        known: the answers to `questions()` and `long_questions()`, from before anything went wrong.
        adapters: the folder that Chameleon serves; stock vLLM has none.
        home: for folders that are loaded by path.
        process: the server's first.
    """

    client: Client
    known: KnownAnswers
    fixtures: AdapterFixtures
    adapters: Path | None
    home: Path
    injector: FaultInjector
    process: psutil.Process
    _names: "itertools.count[int]"

    @property
    def names(self) -> tuple[str, ...]:
        """Whom the load asks.

        Not the base model of stock vLLM, whose CPU backend answers it with an adapter while all slots
        are in use: that would hide what the fault does.
        """
        return tuple(SERVED) if self.adapters is None else (*SERVED, BASE_MODEL)

    def questions(self) -> dict[GreedyRequest, tuple[int, ...]]:
        """What the load asks, and the answers: those of `questions()` to these names."""
        return {asked: self.known[asked] for asked in questions() if asked.model in self.names}

    def fresh_name(self) -> str:
        """A name that no adapter of this server has had."""
        return f"late-{next(self._names)}"

    def placed(self, number: int = VICTIM) -> tuple[str, Path]:
        """A fresh name and a folder with those weights, which the server has not heard of."""
        name = self.fresh_name()
        return name, self.fixtures.place(number, self.home / name)

    async def offered(self, number: int = VICTIM) -> tuple[str, Path]:
        """An adapter that the server was told of while it was sound, and has not in memory.

        Chameleon keeps in memory what it loads by request, and reads what is in its folder when it is
        asked for: there whoever offers it is to take it away.

        Raises:
            RuntimeError: the server refused it.
        """
        if self.adapters is not None:
            name = self.fresh_name()
            path = self.fixtures.place(number, self.adapters / name)
            await until(partial(self._lists, name))
            return name, path
        name, path = self.placed(number)
        status, text = await self.client.load(name, path)
        if status != HTTPStatus.OK:
            raise RuntimeError(f"a sound adapter was refused with {status}: {text}")
        await self.push_out()
        return name, path

    async def _lists(self, name: str) -> bool:
        return name in await self.client.models()

    async def push_out(self) -> None:
        """Asks every other adapter in turn: stock vLLM's host cache then holds them, and not this."""
        for name in SERVED:
            await self.client.ask(GreedyRequest(name, SEEDS[0], 1))

    async def mended(self, name: str, path: Path) -> bool:
        """Whether it is served right after it was loaded anew."""
        await self.client.unload(name)
        await self.client.load(name, path)
        return await self.is_right(name, VICTIM)

    async def is_right(self, name: str, number: int | None) -> bool:
        """Whether one question to an adapter of these weights is answered right."""
        reply = await self.client.ask(GreedyRequest(name, SEEDS[0], PROBE_TOKENS))
        return self.end(reply, (number,)) is RequestEnd.RIGHT

    def end(self, reply: GreedyReply, weights: Iterable[int | None]) -> RequestEnd:
        """How a request ended, whose answer may be that of any of these weights, or else an error."""
        answers = [self.answer(number, reply.asked) for number in weights] or [()]
        ends = [reply.end(answer) for answer in answers]
        return next((end for end in ends if end is not RequestEnd.WRONG), RequestEnd.WRONG)

    def answer(self, number: int | None, asked: GreedyRequest) -> tuple[int, ...]:
        """The first tokens of these weights' answer."""
        name = BASE_MODEL if number is None else f"a{number}"
        length = LONG_TOKENS if asked.seed == LONG_SEED else TOKENS
        return self.known[GreedyRequest(name, asked.seed, length)][: asked.tokens]


def questions() -> list[GreedyRequest]:
    """Two for each adapter and the base model, in turn."""
    return [GreedyRequest(name, seed, TOKENS) for seed in SEEDS for name in (*SERVED, BASE_MODEL)]


def long_questions() -> list[GreedyRequest]:
    """Some whose answers fill memory."""
    return [GreedyRequest(name, LONG_SEED, LONG_TOKENS) for name in LONG_TELLERS]
