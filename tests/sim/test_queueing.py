"""The simulator against queueing theory: one seat is a queue whose waiting time is known exactly."""

import math
import random
from dataclasses import replace
from itertools import accumulate

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.sim.outcome import SimOutcome
from chameleon_lora.sim.profile import StepCosts
from chameleon_lora.sim.run import simulate
from chameleon_lora.workload.requests import TimedRequest
from tests.sim.setups import ANY, FREE, ONE_SEAT, SECOND_A_STEP, profile, setup

COUNT = 20_000
TICK_S = 1e-4
BY_PROMPT = replace(FREE, prefill_token_s=TICK_S)  # a service of any length in one step
ROOMY = replace(ONE_SEAT, batch_tokens=1 << 40, slots=0)
MEMORY = 1_000_000_000  # blocks


def exponentials(count: int, rng: random.Random) -> list[float]:
    """Exponential numbers of mean 1 at equal steps of probability, in random order.

    Their mean and spread are what they should be, so that a run's error is that of their order only.
    """
    numbers = [-math.log((place + 0.5) / count) for place in range(count)]
    rng.shuffle(numbers)
    return numbers


def geometrics(count: int, mean: float, rng: random.Random) -> list[int]:
    """Numbers from 1 on, likewise: each further one with the same probability."""
    scale = -1.0 / math.log(1.0 - 1.0 / mean)
    return [1 + int(number * scale) for number in exponentials(count, rng)]


def waits(load: float, costs: StepCosts, sizes: list[tuple[int, int]], mean_s: float) -> float:
    """Mean time before admission, Poisson arrivals at this load; each as Lindley's recursion has it.

    A request's wait W and what it adds to the next one's, U = its service - the next gap, have
    nothing to do with each other. So W (U - E[U]) / E[U] has mean 0, and taking what a run has of it
    off leaves half of the error (of 40,000 requests' mean wait at half load: 1.8 % to 0.9 %).
    """
    gaps = exponentials(len(sizes), random.Random(1))
    arrivals_s = [at * mean_s / load for at in accumulate(gaps)]
    requests = [
        TimedRequest(index, arrival_s, None, *size)
        for index, (arrival_s, size) in enumerate(zip(arrivals_s, sizes, strict=True))
    ]
    outcome = simulate(setup(profile(costs, MEMORY), ROOMY), requests)
    free_s = total_s = 0.0
    drift_s = mean_s - mean_s / load
    for record, next_s in zip(outcome.records, [*arrivals_s[1:], math.inf], strict=True):
        begin_s = max(record.arrival_s, free_s)
        assert begin_s == pytest.approx(record.admitted_s, rel=1e-9)
        free_s = record.end_s or math.inf
        wait_s = begin_s - record.arrival_s
        added_s = free_s - begin_s - (next_s - record.arrival_s)
        total_s += wait_s if next_s == math.inf else wait_s * added_s / drift_s
    return total_s / len(requests)


@pytest.mark.slow
def test_exponential_service() -> None:
    """M/M/1: W = load / (1 - load) services, at half load 1."""
    services = exponentials(COUNT, random.Random(2))
    sizes = [(max(1, round(service / TICK_S)), 1) for service in services]
    assert 1.0 == pytest.approx(waits(0.5, BY_PROMPT, sizes, 1.0), rel=0.03)


@pytest.mark.slow
def test_equal_service() -> None:
    """M/D/1: W = load / (2 (1 - load)) services, at a load of 0.6 3/4; a service is three steps."""
    sizes = [(1, 3)] * COUNT
    assert 0.75 * 3.0 == pytest.approx(waits(0.6, SECOND_A_STEP, sizes, 3.0), rel=0.03)


@pytest.mark.slow
def test_as_many_steps_as_tokens() -> None:
    """M/G/1 by Pollaczek and Khinchine, W = rate E[S^2] / (2 (1 - load)), for geometric lengths."""
    mean, load = 5.0, 0.5
    sizes = [(1, tokens) for tokens in geometrics(COUNT, mean, random.Random(3))]
    expected_s = load / mean * (2.0 * mean * mean - mean) / (2.0 * (1.0 - load))
    assert expected_s == pytest.approx(waits(load, SECOND_A_STEP, sizes, mean), rel=0.03)


def in_system_s(outcome: SimOutcome) -> float:
    """Requests in the system, counted at each arrival and end, times the time until the next one."""
    events = [(record.arrival_s, 1) for record in outcome.records]
    events += [(record.end_s or 0.0, -1) for record in outcome.records]
    total_s = last_s = 0.0
    present = 0
    for time_s, change in sorted(events):
        total_s += present * (time_s - last_s)
        present, last_s = present + change, time_s
    return total_s


@given(
    sizes=st.lists(st.tuples(st.integers(1, 8), st.integers(1, 8)), min_size=1, max_size=40),
    gap_s=st.floats(0.001, 0.5),
    seats=st.integers(1, 8),
)
def test_littles_law(sizes: list[tuple[int, int]], gap_s: float, seats: int) -> None:
    """Mean number = rate x mean time, in the system and, by the blocks in use, in the batch."""
    requests = [TimedRequest(n, n * gap_s, None, *size) for n, size in enumerate(sizes)]
    made = setup(profile(ANY), replace(ONE_SEAT, seats=seats))
    outcome = simulate(made, requests)
    times_s = [(record.end_s or 0.0) - record.arrival_s for record in outcome.records]
    assert sum(times_s) == pytest.approx(in_system_s(outcome), rel=1e-9)
    # Of at most 8 + 8 tokens each request holds one block while it runs, whatever its length.
    runs_s = [(r.end_s or 0.0) - (r.admitted_s or 0.0) for r in outcome.records]
    assert sum(runs_s) == pytest.approx(outcome.used_block_s, rel=1e-9)
