"""A steady load of questions whose answers are known."""

import asyncio
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass, field

from chameleon_lora.bench.client import Answer
from faults.client import POLL_S, Client
from faults.greedy_request import GreedyReply, GreedyRequest, RequestEnd

KnownAnswers = Mapping[GreedyRequest, tuple[int, ...]]
"""Questions, and the tokens of their answers."""
BEGUN_TOKENS = 3


@dataclass(slots=True)
class SteadyLoad:
    """So many streams, each asking one question after the other for as long as it is told to.

    Attributes:
        known: what is asked, and the answers.
        stops_when_told: a stream asks no more once it was told of an error, as of a server that is to
            end: a request sent while that closes its connections may be dropped unread.
        replies: of all that ended.
    """

    client: Client
    known: KnownAnswers
    streams: int
    stops_when_told: bool = False
    replies: list[GreedyReply] = field(default_factory=list)
    _under_way: dict[int, Answer] = field(default_factory=dict)
    _begun: set[int] = field(default_factory=set)
    _is_over: bool = False

    @asynccontextmanager
    async def running(self) -> AsyncIterator[None]:
        """The block begins when each stream has its first tokens; after it all answers have ended."""
        questions = list(self.known)
        tasks = [
            asyncio.create_task(self._repeat(place, questions[place:] + questions[:place]))
            for place in range(self.streams)
        ]
        try:
            while not all(map(self._has_begun, range(self.streams))):
                await asyncio.sleep(POLL_S)
            yield
        finally:
            self._is_over = True
            await asyncio.gather(*tasks)

    @property
    def in_flight(self) -> int:
        """Requests that have been sent and not ended."""
        return len(self._under_way)

    def end(self, reply: GreedyReply) -> RequestEnd:
        """How a request of the load ended."""
        return reply.end(self.known[reply.asked])

    async def _repeat(self, place: int, questions: Sequence[GreedyRequest]) -> None:
        """Asks in turn until the load is over or nobody listens any more."""
        turn = 0
        while not self._is_over:
            asked = questions[turn % len(questions)]
            answer = self._under_way[place] = Answer()
            reply = await self.client.ask(asked, answer)
            del self._under_way[place]
            self._begun.add(place)
            self.replies.append(reply)
            end = self.end(reply)
            if end is RequestEnd.REFUSED or (end is RequestEnd.TOLD and self.stops_when_told):
                return
            if end is RequestEnd.TOLD:
                await asyncio.sleep(POLL_S)
            turn += 1

    def _has_begun(self, place: int) -> bool:
        answer = self._under_way.get(place)
        has_tokens = answer is not None and len(answer.token_times_s) >= BEGUN_TOKENS
        return has_tokens or place in self._begun


async def learn(
    client: Client, questions: Sequence[GreedyRequest], at_once: int = 1
) -> KnownAnswers:
    """What the server answers while nothing else is asked of it.

    Raises:
        RuntimeError: it failed one of them.
    """
    seats = asyncio.Semaphore(at_once)

    async def ask(asked: GreedyRequest) -> GreedyReply:
        async with seats:
            return await client.ask(asked)

    replies = await asyncio.gather(*map(ask, questions))
    for reply in replies:
        if reply.error is not None:
            raise RuntimeError(f"{reply.asked} failed with nothing wrong: {reply.error}")
    return {reply.asked: reply.token_ids for reply in replies}
