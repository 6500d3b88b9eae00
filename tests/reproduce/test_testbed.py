"""The paper's testbeds: workloads, machines, several seeds as one run."""

import statistics

import pytest

from chameleon_lora.reproduce import arms
from chameleon_lora.reproduce.finding import Effort
from chameleon_lora.reproduce.machines import chat_lengths, split
from chameleon_lora.reproduce.testbed import a40
from chameleon_lora.sim.profile import read_profile


def test_another_load_brings_the_same_requests_closer_together() -> None:
    """At twice the rate each request keeps its adapter and lengths, and comes in half the time."""
    slow = a40().requests(2.0, Effort(60.0, (1,)), 1)
    fast = a40().requests(4.0, Effort(60.0, (1,)), 1)
    assert len(slow) < len(fast)
    for a, b in zip(slow, fast, strict=False):
        assert (a.adapter, a.input_tokens, a.output_tokens) == (
            b.adapter,
            b.input_tokens,
            b.output_tokens,
        )
        assert pytest.approx(a.arrival_s / 2) == b.arrival_s


def test_seeds_are_pooled() -> None:
    """A run of two seeds has the requests and the time of both."""
    runs = [a40().outcome(arms.CHAMELEON, 2.0, Effort(20.0, (seed,))) for seed in (1, 2)]
    both = a40().outcome(arms.CHAMELEON, 2.0, Effort(20.0, (1, 2)))
    assert sum(len(run.records) for run in runs) == len(both.records)
    assert pytest.approx(sum(run.duration_s for run in runs)) == both.duration_s
    assert sum(run.steps for run in runs) == both.steps


def test_chat_lengths_have_the_published_means() -> None:
    """Log-normal lengths of means 70 and 216, cut at 4096, within a tenth."""
    rows = chat_lengths((69.8, 215.7))
    assert pytest.approx(69.8, rel=0.1) == statistics.mean(row.input_tokens for row in rows)
    assert pytest.approx(215.7, rel=0.1) == statistics.mean(row.output_tokens for row in rows)


def test_several_gpus_share_work_and_add_memory() -> None:
    """Four GPUs: a quarter of the arithmetic, more than four times the pool, four links."""
    one = read_profile("llama-7b-a40-48g")
    four = split(one, 4)
    assert one == split(one, 1)
    assert one.step.prefill_token_s / 4 == four.step.prefill_token_s
    assert 4 * one.memory.pool_bytes < four.memory.pool_bytes
    assert 4 * one.host_link.bytes_per_s == four.host_link.bytes_per_s


def test_all_systems_run_the_paper_s_workload_to_its_end() -> None:
    """Each arm ends every request of a short run."""
    compared = (
        arms.SLORA, arms.EACH_STEP, arms.CACHE_ONLY, arms.SCHEDULER_ONLY, arms.CHAMELEON, arms.SJF,
        arms.CHUNKED, arms.STATIC_LANES, arms.PREFETCHING, arms.OURS, arms.BOUND,
    )  # fmt: skip
    for arm in compared:
        run = a40().figures(arm, 8.0, Effort(80.0, (1,)))
        assert 0 == run.failed, arm.label
