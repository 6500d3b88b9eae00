"""Sends a workload to a server at its own times, whatever the server does (an open loop)."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import aiohttp

from chameleon_lora.bench.client import Answer, Clock, CompletionRequest, stream_completion
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.workload.requests import TimedRequest


@dataclass(frozen=True, slots=True)
class Target:
    """The server under test.

    Attributes:
        base_url: such as http://127.0.0.1:8000, without /v1.
        base_model: the name the server gives its base model.
        token_ids: half-open range of the ids that prompts are drawn from.
    """

    base_url: str
    base_model: str
    token_ids: tuple[int, int]


@dataclass(frozen=True, slots=True)
class Progress:
    """A replay at one instant."""

    now_s: float
    total: int
    sent: int
    completed: int
    failed: int


OnProgress = Callable[[Progress], None]


async def replay(
    target: Target,
    requests: Sequence[TimedRequest],
    *,
    patience_s: float = 120.0,
    on_progress: OnProgress | None = None,
    progress_every_s: float = 5.0,
) -> tuple[RequestRecord, ...]:
    """One record a request, by index, after the last answer came.

    No arrival waits for an answer. What is unanswered `patience_s` after the last arrival is given
    up and recorded as failed.
    """
    completions = [completion_of(request, target) for request in requests]  # before the clock runs
    deadline_s = max((request.arrival_s for request in requests), default=0.0) + patience_s
    async with open_session() as session:
        loop = asyncio.get_running_loop()
        start_s = loop.time()
        run = _Run(session, target.base_url, lambda: loop.time() - start_s, deadline_s)
        reporter = asyncio.create_task(_report(run, len(requests), on_progress, progress_every_s))
        try:
            records = await asyncio.gather(*map(run.send_at_arrival, requests, completions))
        finally:
            reporter.cancel()
    return tuple(sorted(records, key=lambda record: record.index))


def open_session() -> aiohttp.ClientSession:
    """A client session without limits of its own, so that only the server makes requests wait."""
    return aiohttp.ClientSession(
        connector=aiohttp.TCPConnector(limit=0), timeout=aiohttp.ClientTimeout(total=None)
    )


def completion_of(request: TimedRequest, target: Target) -> CompletionRequest:
    """The completion that stands for `request`; the same index and lengths give the same prompt.

    Prompts share no beginning, so a prefix cache changes nothing.
    """
    rng = random.Random(f"prompt:{request.index}:{request.input_tokens}")
    prompt = tuple(rng.randrange(*target.token_ids) for _ in range(request.input_tokens))
    return CompletionRequest(request.adapter or target.base_model, prompt, request.output_tokens)


class _Run:
    """Counts of one replay and its clock; lives as long as the call of `replay`.

    sent - completed - failed requests are under way.
    """

    def __init__(
        self, session: aiohttp.ClientSession, base_url: str, clock: Clock, deadline_s: float
    ) -> None:
        self.clock = clock
        self.sent = self.completed = self.failed = 0
        self._session = session
        self._base_url = base_url
        self._deadline_s = deadline_s

    async def send_at_arrival(
        self, request: TimedRequest, completion: CompletionRequest
    ) -> RequestRecord:
        """Sleeps until the arrival, sends, and waits for the answer or the deadline."""
        await asyncio.sleep(request.arrival_s - self.clock())
        sent_s = self.clock()
        self.sent += 1
        answer = Answer()
        try:
            async with asyncio.timeout(self._deadline_s - sent_s):
                await stream_completion(
                    self._session, self._base_url, completion, answer, self.clock
                )
        except TimeoutError:
            answer.error = f"given up: no whole answer {self._deadline_s:.1f} s into the run"
        if answer.error is None:
            self.completed += 1
        else:
            self.failed += 1
        return record_of(request, answer, sent_s=sent_s, end_s=self.clock())


def record_of(
    request: TimedRequest, answer: Answer, *, sent_s: float, end_s: float
) -> RequestRecord:
    """What to keep of `answer`; token counts are the server's where it gave them."""
    prompt_tokens, output_tokens = answer.usage or (
        request.input_tokens,
        len(answer.token_times_s),
    )
    return RequestRecord(
        index=request.index,
        adapter=request.adapter,
        arrival_s=request.arrival_s,
        sent_s=sent_s,
        first_token_s=answer.token_times_s[0] if answer.token_times_s else None,
        token_times_s=tuple(answer.token_times_s),
        end_s=end_s,
        prompt_tokens=prompt_tokens,
        output_tokens=output_tokens,
        error=answer.error,
    )


async def _report(run: _Run, total: int, on_progress: OnProgress | None, every_s: float) -> None:
    """Tells how far the run is, until it is cancelled."""
    while on_progress is not None:
        await asyncio.sleep(every_s)
        on_progress(Progress(run.clock(), total, run.sent, run.completed, run.failed))
