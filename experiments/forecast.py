"""Does predicting requests pay? Run: `.venv/bin/python -m experiments.forecast`.

200 adapters of 16 MiB, host memory for 60 of them. Half are asked for with a period of 20 to 300 s and
a tenth of jitter, half at random (Poisson) with the same mean; a load takes 50 ms, two at a time.
The same requests are served with each setting. Prints the share of requests that found their adapter in
host memory, by kind of adapter, the loads, and CPU time. Options: --seconds, --seed, --keep.
"""

import argparse
import heapq
import random
from dataclasses import dataclass, field, replace
from time import thread_time_ns

from chameleon_lora.policy.memory.forecast import Forecast
from chameleon_lora.policy.plan import StepBudget
from chameleon_lora.policy.request import Adapter, AdapterId, Request, RequestId
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import (
    CacheSettings,
    EngineLimits,
    ForecastSettings,
    KeepRule,
    PolicySettings,
    PrefetchSettings,
)

ADAPTERS = 200
ADAPTER_BYTES = 16 << 20
STEP_S = 0.02
LOAD_S = 0.05
WARM_UP = 0.5  # of the time; requests in it count for nothing
LIMITS = EngineLimits(seats=256, slots=32, kv_tokens=1_000_000, kv_bytes_per_token=131_072)
ROOM = StepBudget(seats=256, kv_tokens=1_000_000, batch_tokens=8192, is_empty=True)
SETTINGS = {
    "off": PrefetchSettings(),
    "predicted": PrefetchSettings(predicted=True),
    "predicted, any histogram": PrefetchSettings(
        predicted=True, forecast=ForecastSettings(least_variation=0.0)
    ),
}


@dataclass(slots=True)
class Result:
    """What one run found: hits and misses of regular and of random adapters."""

    hits: list[int] = field(default_factory=lambda: [0, 0])
    asked: list[int] = field(default_factory=lambda: [0, 0])
    loads: int = 0
    arrived_ns: int = 0
    step_ns: int = 0
    steps: int = 0


def arrivals(seconds: float, seed: int) -> list[tuple[float, int]]:
    """When each adapter is asked for; even ones regularly, odd ones at random."""
    rng, found = random.Random(seed), []
    for number in range(ADAPTERS):
        mean_s = 20.0 * 15.0 ** rng.random()
        now_s = rng.uniform(0.0, mean_s)
        while now_s < seconds:
            found.append((now_s, number))
            is_random = number % 2
            now_s += rng.expovariate(1 / mean_s) if is_random else rng.gauss(mean_s, mean_s / 10)
    return sorted(found)


def run(requests: list[tuple[float, int]], settings: PolicySettings) -> Result:
    """Serve them, each in one step once its adapter is there."""
    policy, result = Scheduler(settings, LIMITS), Result()
    loading: list[tuple[float, AdapterId]] = []
    for number in range(ADAPTERS):
        policy.registered(Adapter(AdapterId(number), f"a{number}", 16, ADAPTER_BYTES))
    count, now_s, end_s = 0, 0.0, requests[-1][0]
    while now_s < end_s:
        while requests[count][0] <= now_s:
            number, count = requests[count][1], count + 1
            if now_s > WARM_UP * end_s:
                result.asked[number % 2] += 1
                result.hits[number % 2] += policy.adapter(AdapterId(number)).is_in_host
            request = Request(RequestId(f"r{count}"), AdapterId(number), 100, 10, 10)
            start_ns = thread_time_ns()
            policy.arrived(request, now_s)
            result.arrived_ns += thread_time_ns() - start_ns
        start_ns = thread_time_ns()
        plan = policy.step(now_s, ROOM)
        result.step_ns += thread_time_ns() - start_ns
        result.steps += 1
        result.loads += len(plan.loads) * (now_s > WARM_UP * end_s)
        for load in plan.loads:
            heapq.heappush(loading, (now_s + LOAD_S, load.adapter_id))
        now_s += STEP_S
        while loading and loading[0][0] <= now_s:
            policy.loaded(heapq.heappop(loading)[1], ADAPTER_BYTES, 16, now_s)
        for admission in plan.admit:
            policy.finished(admission.request_id, 10, now_s)
    return result


def observing_us(requests: list[tuple[float, int]], kind: int) -> float:
    """CPU time of one `Forecast.arrived` and of what became due before it: regular 0, random 1."""
    forecast = Forecast(ForecastSettings())
    chosen = [(at_s, AdapterId(number)) for at_s, number in requests if number % 2 == kind]
    start_ns = thread_time_ns()
    for at_s, adapter_id in chosen:
        forecast.due(at_s)
        forecast.arrived(adapter_id, at_s)
    return (thread_time_ns() - start_ns) / len(chosen) / 1000


def main() -> None:
    """Each setting on the same requests."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--seconds", type=float, default=6000.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", type=KeepRule, default=KeepRule.CHAMELEON)
    given = parser.parse_args()
    requests = arrivals(given.seconds, given.seed)
    base = PolicySettings(cache=CacheSettings(keep=given.keep, host_bytes=60 * ADAPTER_BYTES))
    print(f"{len(requests)} requests, keep rule {given.keep.value}, seed {given.seed}")
    regular_us, random_us = (observing_us(requests, kind) for kind in (0, 1))
    print(
        f"forecast alone: {regular_us:.1f} us a request of a regular adapter, {random_us:.1f} random"
    )
    for name, prefetch in SETTINGS.items():
        result = run(requests, replace(base, prefetch=prefetch))
        regular, at_random = (h / n for h, n in zip(result.hits, result.asked, strict=True))
        print(
            f"{name:25} hits: regular {regular:.3f}  random {at_random:.3f}"
            f"  all {sum(result.hits) / sum(result.asked):.3f}   {result.loads:5} loads"
            f"   arrived {result.arrived_ns / len(requests) / 1000:5.1f} us"
            f"  step {result.step_ns / result.steps / 1000:5.1f} us"
        )


if __name__ == "__main__":
    main()
