"""A replay that is watched, against a real HTTP server in this process."""

import asyncio
from dataclasses import dataclass

from chameleon_lora.bench.replay import Target
from chameleon_lora.bench.watch import PollSettings, WatchedRun, watched_replay
from chameleon_lora.metrics.sample import LaneSample
from chameleon_lora.workload.requests import TimedRequest
from tests.bench.fake_openai import FakeOpenAI

METRICS = "vllm:num_requests_running 2.0\nvllm:kv_cache_usage_perc 0.5\n"
STATE = {
    "lanes": [
        {
            "lane": 0,
            "waiting": 4,
            "loading": 1,
            "running": 2,
            "quota_tokens": 100,
            "used_tokens": 60,
            "held": None,
        }
    ],
    "tiers": {"host": {"adapters": 1, "bytes": 10}},
    "device": {"held_blocks": 3, "block_bytes": 7},
}
PAGES = ("/metrics", "/chameleon/state", "/chameleon/arrivals")


@dataclass(frozen=True, slots=True)
class Asked:
    """How often a server was asked for each of PAGES."""

    metrics: int
    state: int
    arrivals: int


def run(
    server: FakeOpenAI, *adapters: str | None, limit_s: float = 5.0
) -> tuple[WatchedRun, Asked]:
    """One request an adapter, 30 ms apart, and a look every 20 ms that may take so long."""

    async def replay_once() -> WatchedRun:
        async with server:
            target = Target(server.base_url, "base", (100, 200))
            requests = [TimedRequest(i, 0.03 * i, name, 5, 3) for i, name in enumerate(adapters)]
            return await watched_replay(
                target,
                requests,
                patience_s=10.0,
                polling=PollSettings(every_s=0.02, limit_s=limit_s),
            )

    return asyncio.run(replay_once()), Asked(*(server.asked.count(page) for page in PAGES))


def test_a_stock_server_tells_its_gauges() -> None:
    """Several looks in order; pages that only Chameleon has are asked for once."""
    watched, asked = run(FakeOpenAI(metrics=METRICS), *"abcdefgh")
    times_s = [sample.at_s for sample in watched.samples]
    assert len(times_s) > 1
    assert sorted(times_s) == times_s
    first = watched.samples[0]
    assert (2, None, 0.5) == (first.running, first.waiting, first.kv_usage)
    assert ((), None, None) == (first.lanes, first.cache_bytes, first.lent_bytes)
    assert (1, 1) == (asked.state, asked.arrivals)
    assert {None} == {record.residency for record in watched.records}


def test_chameleon_tells_lanes_and_bytes() -> None:
    """Beside the gauges, which may be missing."""
    watched, _ = run(FakeOpenAI(state=STATE), "a", "b")
    (first, *_) = watched.samples
    assert (LaneSample(0, 4, 1, 2, 60, 100, None),) == first.lanes
    assert ({"host": 10}, 21) == (first.cache_bytes, first.lent_bytes)
    assert first.running is None


def test_records_say_where_their_adapter_was() -> None:
    """Those before the run are another's; the base model has no adapter to be anywhere."""
    earlier = [("cmpl-0-0-1f2e3d", "disk"), ("cmpl-1-0-1f2e3d", "disk")]
    server = FakeOpenAI(tier="host", arrivals=earlier)
    watched, asked = run(server, "a", None, "b")
    assert ["host", None, "host"] == [record.residency for record in watched.records]
    assert asked.arrivals > 2


def test_a_server_that_tells_nothing_is_replayed_all_the_same() -> None:
    """Three pages asked for once each, no samples, all requests answered."""
    watched, asked = run(FakeOpenAI(), *"abcd")
    assert () == watched.samples
    assert Asked(1, 1, 1) == asked
    assert all(record.is_completed for record in watched.records)


def test_pages_that_hang_delay_no_request() -> None:
    """Each look is given up after its limit, and at the end of the run."""
    watched, _ = run(FakeOpenAI(has_hanging_pages=True), *"abcd", limit_s=0.1)
    assert () == watched.samples
    assert all(record.is_completed for record in watched.records)


def test_pages_that_say_something_else_fail_no_run() -> None:
    """A state of another form is left out of the samples."""
    watched, asked = run(FakeOpenAI(state={"lanes": 3}, metrics=METRICS), *"abcd")
    assert all(sample.lanes == () for sample in watched.samples)
    assert asked.state > 1
    assert all(record.is_completed for record in watched.records)


def test_a_server_that_is_not_there_is_no_error() -> None:
    """The records say it, request by request."""
    target = Target("http://127.0.0.1:9", "base", (100, 200))
    watched = asyncio.run(watched_replay(target, [TimedRequest(0, 0.0, "a", 5, 3)]))
    (record,) = watched.records
    assert (record.error or "").startswith("connection refused: ")
    assert () == watched.samples
