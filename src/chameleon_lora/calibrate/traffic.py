"""Requests that show a server's engine in all the states that a step's time depends on."""

import asyncio
import itertools
import random
import statistics
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from enum import Enum
from typing import assert_never

from chameleon_lora.bench.replay import Target, replay
from chameleon_lora.errors import BenchError
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.workload.requests import TimedRequest

ALONE = 10
ALONE_PROMPT_TOKENS, ALONE_ANSWER_TOKENS = 8, 16
LONGEST_ANSWER = 48


@dataclass(frozen=True, slots=True)
class WaveShape:
    """What the waves are made for.

    Attributes:
        seats: requests that run at a time.
        context_tokens: most tokens of a prompt and its answer.
        slots: distinct adapters in one batch.
        adapters: names of all.
    """

    seats: int
    context_tokens: int
    slots: int
    adapters: Sequence[str]


class WaveAdapters(Enum):
    """Whose requests a wave holds."""

    BASE = "base"  # none has an adapter
    ONE = "one"  # all have the same
    SLOTS = "slots"  # as many adapters as there are slots, in turn
    ALL = "all"  # any adapter
    SOME = "some"  # a third without an adapter, the others as SLOTS


def measure_token_s(target: Target) -> float:
    """Sends ALONE requests to the base model one after the other; median time of a token, seconds.

    Of whole answers: a client that is held up reads several tokens at once, and by a time of 0
    between them all waves would come at once.

    Raises:
        BenchError: a request failed.
    """
    requests = [
        TimedRequest(index, 0.0, None, ALONE_PROMPT_TOKENS, ALONE_ANSWER_TOKENS)
        for index in range(ALONE)
    ]
    records = [_answered(asyncio.run(replay(target, [request])))[0] for request in requests]
    return statistics.median((r.end_s - r.sent_s) / r.output_tokens for r in records)


def send_waves(
    target: Target, shape: WaveShape, step_s: float, seconds: float
) -> list[Sequence[RequestRecord]]:
    """Waves until they have taken so many seconds, one of each mix at least, and what became of each.

    Raises:
        BenchError: a request failed.
    """
    taken_s = 0.0
    sent: list[Sequence[RequestRecord]] = []
    for wave in plan_waves(shape, step_s):
        if taken_s >= seconds and len(sent) >= len(WaveAdapters):
            break
        sent.append(_answered(asyncio.run(replay(target, wave))))
        taken_s += max(record.end_s for record in sent[-1])
    return sent


def outside_s(waves: Sequence[Sequence[RequestRecord]], engine_s: Sequence[float]) -> float:
    """Time of a request outside the engine until its first token came, while others are served.

    `engine_s` is each request's time in the engine until then, ordered by wave. The difference of the
    means of each wave whose requests did not all come at once; the median of the waves; at least 0.

    Raises:
        BenchError: there is not one time for each request, or all waves came at once.
    """
    if len(engine_s) != sum(map(len, waves)):
        raise BenchError(
            f"the engine recorded {len(engine_s)} first tokens of {sum(map(len, waves))} requests: "
            "is another client using this server?"
        )
    rest, found_s = iter(engine_s), []
    for wave in waves:
        inside_s = statistics.mean(itertools.islice(rest, len(wave)))
        if any(record.arrival_s > 0.0 for record in wave):
            found_s.append(statistics.mean(r.token_times_s[0] - r.sent_s for r in wave) - inside_s)
    if not found_s:
        raise BenchError(f"{len(waves)} waves are too few to time requests; measure for longer")
    return max(0.0, statistics.median(found_s))


def plan_waves(
    shape: WaveShape, step_s: float, seed: int = 0
) -> Iterator[tuple[TimedRequest, ...]]:
    """Without end: one of each mix of adapters, then all kinds, again and again, in an order of chance.

    A kind is a mix of adapters, a range of prompts and a distance of arrivals: from all at once,
    which queues, to one every few steps, so that prompts are computed beside few and many decodes.
    """
    rng = random.Random(seed)
    longest = shape.context_tokens * 3 // 4
    prompts = ((1, 8), (8, max(9, longest // 4)), (longest // 4, longest))
    kinds = list(itertools.product(WaveAdapters, prompts, (0.0, 1.0, 6.0)))
    first = ALONE
    order: list[tuple[WaveAdapters, tuple[int, int], float]] = [
        (mix, prompts[0], 1.0) for mix in WaveAdapters
    ]
    while True:
        for mix, prompt, steps_apart in order:
            wave = _wave(shape, mix, prompt, steps_apart * step_s, rng)
            yield tuple(replace(request, index=first + request.index) for request in wave)
            first += len(wave)  # an index of its own is a prompt of its own
        order = rng.sample(kinds, len(kinds))


def _wave(
    shape: WaveShape, mix: WaveAdapters, prompt: tuple[int, int], apart_s: float, rng: random.Random
) -> list[TimedRequest]:
    """Half to twice as many requests as there are seats."""
    count = rng.randint(max(2, shape.seats // 2), 2 * shape.seats)
    some = rng.sample(list(shape.adapters), min(shape.slots, len(shape.adapters)))
    longest = max(3, min(LONGEST_ANSWER, shape.context_tokens // 4))
    return [
        TimedRequest(
            index=index,
            arrival_s=index * apart_s,
            adapter=_adapter(shape, mix, some, index, rng),
            input_tokens=rng.randint(*prompt),
            output_tokens=rng.randint(2, longest),
        )
        for index in range(count)
    ]


def _adapter(
    shape: WaveShape, mix: WaveAdapters, some: Sequence[str], index: int, rng: random.Random
) -> str | None:
    match mix:
        case WaveAdapters.BASE:
            return None
        case WaveAdapters.ONE:
            return some[0]
        case WaveAdapters.SLOTS:
            return some[index % len(some)]
        case WaveAdapters.ALL:
            return rng.choice(shape.adapters)
        case WaveAdapters.SOME:
            return None if rng.random() < 1 / 3 else some[index % len(some)]
        case _:
            assert_never(mix)


def _answered(records: Sequence[RequestRecord]) -> Sequence[RequestRecord]:
    for record in records:
        if record.error is not None:
            raise BenchError(f"request {record.index} of the probe failed: {record.error}")
    return records
