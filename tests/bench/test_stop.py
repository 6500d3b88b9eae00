"""A replay that is stopped before its end."""

import asyncio

from chameleon_lora.bench.replay import Progress, Target, replay
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.workload.requests import TimedRequest
from tests.bench.fake_openai import FakeOpenAI


def stopped(*requests: TimedRequest, after: int) -> tuple[RequestRecord, ...]:
    """The records of a replay that is stopped when so many answers are whole."""

    async def replay_once() -> tuple[RequestRecord, ...]:
        stop = asyncio.Event()

        def watch(at: Progress) -> None:
            if at.completed == after:
                stop.set()

        async with FakeOpenAI() as server:
            target = Target(server.base_url, "base", (100, 200))
            return await replay(
                target, requests, on_progress=watch, progress_every_s=0.02, stop=stop
            )

    return asyncio.run(replay_once())


def test_what_is_under_way_is_given_up_and_the_rest_never_sent() -> None:
    """One answered, one that never would be, one due in an hour: two records, at once."""
    answered, silent = stopped(
        TimedRequest(0, 0.05, "a", 5, 3),
        TimedRequest(1, 0.0, "silent", 5, 3),
        TimedRequest(2, 3600.0, "a", 5, 3),
        after=1,
    )
    assert answered.is_completed
    assert silent.error is not None
    assert silent.error.startswith("given up: the run was stopped ")
    assert silent.end_s < 60.0


def test_a_stop_with_nothing_under_way_ends_the_wait() -> None:
    """The one record there is."""
    rows = (TimedRequest(0, 0.0, "a", 5, 1), TimedRequest(1, 3600.0, "a", 5, 1))
    (only,) = stopped(*rows, after=1)
    assert only.is_completed


def test_a_stop_that_never_comes_changes_nothing() -> None:
    """All are answered, and the run ends with the last of them."""
    records = stopped(*(TimedRequest(i, 0.0, "a", 5, 1) for i in range(3)), after=9)
    assert [True] * 3 == [record.is_completed for record in records]
