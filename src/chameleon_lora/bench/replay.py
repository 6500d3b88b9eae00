"""Sends a workload to a server at its own times, whatever the server does (an open loop)."""

import asyncio
import contextlib
import random
import resource
import time
from collections.abc import Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeVar

import aiohttp

from chameleon_lora.bench.client import Answer, Clock, ConnectionUse, stream_call
from chameleon_lora.bench.completion import (
    CompletionRequest,
    EncodedCompletion,
    Endpoint,
    PromptForm,
    text_prompt,
    token_prompt,
)
from chameleon_lora.metrics.errors import Cause
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.workload.requests import TimedRequest

_KEEP_CONNECTION_S = 4.0  # below the 5 s after which uvicorn hangs up, so as not to meet it
_FILES = 65_536


@dataclass(frozen=True, slots=True)
class Target:
    """The server under test, and how it wants to be asked.

    Attributes:
        base_url: such as http://127.0.0.1:8000, without /v1.
        base_model: the name the server gives its base model.
        token_ids: half-open range of the ids that prompts are drawn from; not used for text.
        prompt_form: with the chat endpoint prompts are text in any case.
        headers: sent with each request; see `bearer`.
        ignore_eos: answers are as long as the workload says. vLLM's extension: servers that refuse
            it are sent False, and end answers when they like.
    """

    base_url: str
    base_model: str
    token_ids: tuple[int, int]
    endpoint: Endpoint = Endpoint.COMPLETIONS
    prompt_form: PromptForm = PromptForm.TOKEN_IDS
    headers: tuple[tuple[str, str], ...] = field(default=(), repr=False)
    ignore_eos: bool = True


def bearer(api_key: str) -> tuple[str, str]:
    """The header that shows an API key."""
    return ("Authorization", f"Bearer {api_key}")


@dataclass(frozen=True, slots=True)
class Progress:
    """How many requests of a replay were sent by now, and how they ended."""

    now_s: float
    total: int
    sent: int
    completed: int
    failed: int


OnProgress = Callable[[Progress], None]


@dataclass(frozen=True, slots=True)
class Watcher:
    """Who looks on while a replay runs.

    Attributes:
        beside: started with the run's clock, and cancelled when the last answer has come.
        on_answer: sees each answer when it has ended.
    """

    beside: Callable[[Clock], Coroutine[Any, Any, None]]
    on_answer: Callable[[TimedRequest, Answer], None]


async def replay(
    target: Target,
    requests: Sequence[TimedRequest],
    *,
    patience_s: float = 120.0,
    on_progress: OnProgress | None = None,
    progress_every_s: float = 5.0,
    watcher: Watcher | None = None,
    stop: asyncio.Event | None = None,
) -> tuple[RequestRecord, ...]:
    """One record a request, by index, after the last answer came.

    No arrival waits for an answer. What is unanswered `patience_s` after the last arrival is given
    up and recorded as failed. Once `stop` is set nothing more is sent, what is under way is given
    up, and there are records of what had been sent.
    """
    calls = [completion_of(request, target).call() for request in requests]  # before the clock runs
    deadline_s = max((request.arrival_s for request in requests), default=0.0) + patience_s
    allow_many_connections()
    async with open_session(target.headers) as session:
        run = _Run(session, target.base_url, deadline_s, watcher)
        companions = [_report(run, len(requests), on_progress, progress_every_s)]
        if watcher is not None:
            companions.append(watcher.beside(run.clock))
        if stop is not None:
            companions.append(run.end_at(stop))
        tasks = [asyncio.create_task(companion) for companion in companions]
        try:
            records = await run.send_all(requests, calls)
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
    return tuple(sorted(records, key=lambda record: record.index))


def open_session(
    headers: Sequence[tuple[str, str]] = (), *, reuses_connections: bool = True
) -> aiohttp.ClientSession:
    """A client session without limits of its own, so that only the server makes requests wait.

    Without reuse each request has a connection to itself: what the server drops there, it had taken.
    """
    traced = aiohttp.TraceConfig()
    traced.on_connection_reuseconn.append(_note_reuse)
    connector = (
        aiohttp.TCPConnector(limit=0, keepalive_timeout=_KEEP_CONNECTION_S)
        if reuses_connections
        else aiohttp.TCPConnector(limit=0, force_close=True)
    )
    return aiohttp.ClientSession(
        connector=connector,
        timeout=aiohttp.ClientTimeout(total=None),
        headers=headers,
        trace_configs=[traced],
    )


async def _note_reuse(_session: Any, context: Any, _params: Any) -> None:
    if isinstance(context.trace_request_ctx, ConnectionUse):
        context.trace_request_ctx.is_reused = True


def completion_of(request: TimedRequest, target: Target) -> CompletionRequest:
    """The completion that stands for `request`; the same index and lengths give the same prompt.

    Prompts share no beginning, so a prefix cache changes nothing.
    """
    rng = random.Random(f"prompt:{request.index}:{request.input_tokens}")
    prompt: tuple[int, ...] | str
    if target.endpoint is Endpoint.CHAT or target.prompt_form is PromptForm.TEXT:
        prompt = text_prompt(rng, request.input_tokens)
    else:
        prompt = token_prompt(rng, request.input_tokens, target.token_ids)
    return CompletionRequest(
        model=request.adapter or target.base_model,
        prompt=prompt,
        output_tokens=request.output_tokens,
        endpoint=target.endpoint,
        ignore_eos=target.ignore_eos,
    )


def allow_many_connections() -> None:
    """Afterwards this process may have `_FILES` open, if it can be allowed: each stream is one."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = _FILES if hard == resource.RLIM_INFINITY else min(_FILES, hard)
    if soft != resource.RLIM_INFINITY and soft < wanted:
        resource.setrlimit(resource.RLIMIT_NOFILE, (wanted, hard))


class _Run:
    """Counts of one replay and its clock; lives as long as the call of `replay`.

    sent - completed - failed requests are under way.
    """

    def __init__(
        self,
        session: aiohttp.ClientSession,
        base_url: str,
        deadline_s: float,
        watcher: Watcher | None,
    ) -> None:
        monotonic = time.monotonic  # noqa: TID251 - uvloop's own clock counts whole milliseconds
        start_s = monotonic()
        self.clock: Clock = lambda: monotonic() - start_s
        self.sent = self.completed = self.failed = 0
        self._session = session
        self._base_url = base_url
        self._deadline_s = deadline_s
        self._watcher = watcher
        self._ending: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self._timeouts: set[asyncio.Timeout] = set()

    async def end_at(self, stop: asyncio.Event) -> None:
        """Waits for `stop`; then the deadline is now."""
        await stop.wait()
        self._deadline_s = self.clock()
        self._ending.set_result(None)
        for timeout in self._timeouts:
            if not timeout.expired():
                timeout.reschedule(asyncio.get_running_loop().time())

    async def send_all(
        self, requests: Sequence[TimedRequest], calls: Sequence[EncodedCompletion]
    ) -> list[RequestRecord]:
        """Starts each request at its arrival; waits for them all."""
        order = sorted(zip(requests, calls, strict=True), key=lambda pair: pair[0].arrival_s)
        async with asyncio.TaskGroup() as group:
            tasks = []
            for request, call in order:
                while (wait_s := request.arrival_s - self.clock()) > 0.0 and not self._is_ending:
                    await asyncio.wait([self._ending], timeout=wait_s)
                if self._is_ending:
                    break
                tasks.append(group.create_task(self._send(request, call)))
        return [task.result() for task in tasks]

    @property
    def _is_ending(self) -> bool:
        return self._ending.done()

    async def _send(self, request: TimedRequest, call: EncodedCompletion) -> RequestRecord:
        """Sends, and waits for the answer or the deadline."""
        sent_s = self.clock()
        self.sent += 1
        answer = Answer()
        timeout = asyncio.timeout(self._deadline_s - sent_s)
        self._timeouts.add(timeout)
        try:
            async with timeout:
                await stream_call(self._session, self._base_url, call, answer, self.clock)
        except TimeoutError:
            why = "the run was stopped" if self._is_ending else "no whole answer"
            what = f"{why} {self._deadline_s:.1f} s into the run"
            answer.error = Cause.GIVEN_UP.error(what)
        finally:
            self._timeouts.discard(timeout)
        if answer.error is None:
            self.completed += 1
        else:
            self.failed += 1
        if self._watcher is not None:
            self._watcher.on_answer(request, answer)
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


_new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
with contextlib.suppress(ImportError):  # it comes with vLLM, and the base install has none
    import uvloop

    _new_loop = uvloop.new_event_loop

Result = TypeVar("Result")


def run_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` returns; on uvloop where that is installed (`experiments/load_generator.py` compares)."""
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(work)
