"""The waves of requests that an engine is probed with."""

import asyncio
import itertools

import pytest

from chameleon_lora.bench.replay import Target
from chameleon_lora.calibrate.traffic import (
    ALONE,
    WaveShape,
    measure_token_s,
    outside_s,
    plan_waves,
    send_waves,
)
from chameleon_lora.errors import BenchError
from tests.bench.fake_openai import FakeOpenAI
from tests.metrics.records import record

SCOPE = WaveShape(seats=8, context_tokens=256, slots=3, adapters=tuple(f"a{n}" for n in range(10)))
KINDS = 45  # five mixes, three ranges of prompts, three distances


def test_waves_fit_the_engine_and_repeat_no_prompt() -> None:
    """No request is longer than the context, and each index, so each prompt, is used once."""
    waves = list(itertools.islice(plan_waves(SCOPE, 0.01), KINDS))
    requests = list(itertools.chain(*waves))
    assert len(requests) == len({request.index for request in requests})
    assert all(request.input_tokens + request.output_tokens <= 256 for request in requests)
    assert all(4 <= len(wave) <= 16 for wave in waves)


def test_one_round_holds_every_state() -> None:
    """Batches without an adapter, with one, with all slots' and with more; at once and one by one."""
    waves = list(itertools.islice(plan_waves(SCOPE, 0.01), KINDS))
    counts = {len({request.adapter for request in wave if request.adapter}) for wave in waves}
    assert {0, 1, 3} <= counts
    assert max(counts) > 3
    assert {0.0, 0.01, 0.06} == {wave[1].arrival_s for wave in waves}


def test_the_same_seed_gives_the_same_waves() -> None:
    """So two calibrations measure the same work."""
    first, second = (list(itertools.islice(plan_waves(SCOPE, 0.01, 3), 50)) for _ in range(2))
    assert first == second


def test_requests_are_sent_alone_then_in_waves() -> None:
    """Against a server that answers at once: a few requests, then waves until the time is over."""

    async def probe() -> tuple[int, int, int]:
        async with FakeOpenAI() as server:
            target = Target(server.base_url, "base", (3, 500))
            assert (
                await asyncio.to_thread(measure_token_s, target) > 0.0
            )  # though some come at once
            after_alone = len(server.bodies)
            waves = await asyncio.to_thread(send_waves, target, SCOPE, 0.0, 0.05)
            return after_alone, sum(map(len, waves)), len(server.bodies)

    after_alone, in_waves, in_all = asyncio.run(probe())
    assert ALONE == after_alone
    assert in_waves > 0
    assert ALONE + in_waves == in_all


def test_time_outside_is_what_clients_wait_beyond_the_engine() -> None:
    """Two waves whose clients wait 10 ms and 20 ms longer; one that came at once does not count."""
    waves = [
        [record(0, 0.0, (0.110,)), record(1, 1.0, (1.130,))],
        [record(2, 0.0, (9.0,)), record(3, 0.0, (9.0,))],
        [record(4, 0.0, (0.120,)), record(5, 1.0, (1.140,))],
    ]
    engine_s = [0.100, 0.120, 0.1, 0.1, 0.100, 0.120]
    assert pytest.approx(0.015) == outside_s(waves, engine_s)


def test_the_engine_is_never_slower_than_its_clients_see() -> None:
    """Clocks are read a moment apart; no time is negative."""
    wave = [record(0, 0.0, (0.1,)), record(1, 1.0, (1.1,))]
    assert 0.0 == outside_s([wave], [0.2, 0.2])


def test_requests_of_others_are_noticed() -> None:
    """Their times would be taken for ours."""
    wave = [record(0, 0.0, (0.1,)), record(1, 1.0, (1.1,))]
    with pytest.raises(BenchError, match="3 first tokens of 2 requests"):
        outside_s([wave], [0.1, 0.1, 0.1])


def test_waves_that_came_at_once_do_not_do() -> None:
    """They wait for each other outside the engine, as open traffic seldom does."""
    with pytest.raises(BenchError, match="1 waves are too few"):
        outside_s([[record(0, 0.0, (0.1,))]], [0.1])


def test_a_failed_request_ends_the_probe() -> None:
    """Costs of errors would be nonsense."""

    async def probe() -> None:
        async with FakeOpenAI() as server:
            await asyncio.to_thread(measure_token_s, Target(server.base_url, "failing", (3, 500)))

    with pytest.raises(BenchError, match="request 0 of the probe failed: HTTP 404"):
        asyncio.run(probe())
