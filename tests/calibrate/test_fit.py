"""Costs from measured steps and copies."""

import random
from dataclasses import fields, replace

import pytest

from chameleon_lora.calibrate.fit import (
    MIN_STEPS,
    MeasuredCopy,
    MeasuredStep,
    fit_link,
    fit_steps,
)
from chameleon_lora.errors import BenchError
from chameleon_lora.metrics.step_work import StepWork
from chameleon_lora.sim.profile import StepCosts

TRUE = StepCosts(
    base_s=0.012,
    prefill_token_s=2e-4,
    decode_request_s=5e-4,
    context_token_s=2e-6,
    attention_pair_s=1e-7,
    lora_base_s=0.009,
    lora_prefill_base_s=0.002,
    lora_adapter_s=4e-4,
    lora_prefill_rank_s=2e-5,
    lora_decode_rank_s=3e-5,
)


EARLIER = [
    0.012499983, 2.088357160e-4, 5.065351592e-4, 2.224546042e-6, 1.260046005e-7,
    0.009538022997, 0.002238353704, 3.218018462e-4, 2.162758457e-5, 3.075947797e-5, 0.0,
]  # fmt: skip


def random_work(rng: random.Random) -> StepWork:
    """Some prompts, some decodes, some adapters; never an empty step."""
    prefill, decodes = rng.choice((0, 0, rng.randint(1, 256))), rng.randint(1, 16)
    adapters = rng.choice((0, rng.randint(1, min(4, decodes))))
    return StepWork(
        prefill_tokens=prefill,
        attention_pairs=prefill * rng.uniform(1.0, 256.0),
        decode_requests=decodes,
        context_tokens=decodes * rng.randint(8, 400),
        lora_prefill_ranks=16 * prefill if adapters else 0,
        lora_decode_ranks=16 * rng.randint(adapters, decodes) if adapters else 0,
        adapters=adapters,
    )


def steps_of(costs: StepCosts, count: int, *, noise: float, hiccups: float) -> list[MeasuredStep]:
    """Steps of these costs, with noise of this deviation and a share that takes 2 to 5 times long."""
    rng = random.Random(5)
    steps = []
    for _ in range(count):
        work = random_work(rng)
        factor = max(0.5, rng.gauss(1.0, noise))
        if rng.random() < hiccups:
            factor *= rng.uniform(2.0, 5.0)
        steps.append(MeasuredStep(work, costs.step_s(work) * factor))
    return steps


def test_costs_are_found_in_clean_steps() -> None:
    """Steps without noise give back the costs that they were made of, and no error."""
    fit = fit_steps(steps_of(TRUE, 500, noise=0.0, hiccups=0.0))
    for field in fields(TRUE):
        assert pytest.approx(getattr(TRUE, field.name), rel=1e-4) == getattr(fit.costs, field.name)
    assert pytest.approx(0.0, abs=1e-6) == fit.step_error
    assert 100 == fit.held_out


def test_costs_of_exact_ranks_are_found() -> None:
    """Adapters of ranks 4 to 64, each with rows of its own: what a rank costs to read, and by row."""
    costs, rng, steps = replace(TRUE, lora_adapter_rank_s=1e-5), random.Random(3), []
    for _ in range(500):
        work = random_work(rng)
        ranks = [rng.choice((4, 8, 16, 64)) for _ in range(work.adapters)]
        work.adapter_ranks = sum(ranks)
        work.lora_prefill_ranks = work.prefill_tokens * max(ranks, default=0)
        work.lora_decode_ranks = sum(rank * rng.randint(1, 4) for rank in ranks)
        steps.append(MeasuredStep(work, costs.step_s(work)))
    found = fit_steps(steps).costs
    for field in fields(costs):
        assert pytest.approx(getattr(costs, field.name), rel=1e-3) == getattr(found, field.name)


def test_hiccups_of_the_machine_are_shared_out() -> None:
    """With 5 % noise, and 2 % of steps two to five times as long, all costs rise alike, by 3.7 %.

    The mean factor of a hiccup is 2.83, for what is beyond 3 is cut; 0.02 * 1.83 = 0.037.
    """
    fit = fit_steps(steps_of(TRUE, 3000, noise=0.05, hiccups=0.02))
    rng = random.Random(6)
    ratios = [
        fit.costs.step_s(work) / TRUE.step_s(work)
        for work in (random_work(rng) for _ in range(200))
    ]
    assert pytest.approx(1.037, abs=0.01) == sum(ratios) / len(ratios)
    assert max(ratios) - min(ratios) < 0.05


def test_the_error_is_told_on_steps_that_were_not_fitted() -> None:
    """Steps with 10 % noise are off by 8 % on average (the mean of |N(0, 0.1)|), in sum by little."""
    fit = fit_steps(steps_of(TRUE, 2000, noise=0.1, hiccups=0.0))
    assert pytest.approx(0.08, rel=0.2) == fit.step_error
    assert abs(fit.total_error) < 0.02


def test_a_cost_that_does_not_exist_is_nil() -> None:
    """Steps of an engine without LoRA costs give none, rather than small ones above and below 0."""
    plain = StepCosts(base_s=0.01, prefill_token_s=1e-4, decode_request_s=1e-4, context_token_s=0.0)
    fit = fit_steps(steps_of(plain, 500, noise=0.0, hiccups=0.0))
    assert pytest.approx(0.0, abs=1e-9) == fit.costs.lora_decode_rank_s
    assert pytest.approx(0.0, abs=1e-6) == fit.costs.lora_base_s


def test_too_few_steps_are_refused() -> None:
    """The message tells how many there are and how many are needed."""
    with pytest.raises(BenchError, match=f"10 steps .* {MIN_STEPS}"):
        fit_steps(steps_of(TRUE, 10, noise=0.0, hiccups=0.0))


def test_a_link_is_found() -> None:
    """Copies of 2 ms and 1 GB/s give that latency and that rate."""
    sizes = [1_000_000, 2_000_000, 4_000_000] * 5
    link = fit_link([MeasuredCopy(nbytes, 0.002 + nbytes / 1e9) for nbytes in sizes])
    assert pytest.approx(0.002, rel=0.02) == link.latency_s
    assert pytest.approx(1e9, rel=0.02) == link.bytes_per_s


def test_copies_of_one_duration_have_latency_alone() -> None:
    """A rate that cannot be told is very high, never infinite."""
    link = fit_link([MeasuredCopy(nbytes, 0.003) for nbytes in (1000, 2000, 4000)])
    assert pytest.approx(0.003, rel=1e-5) == link.copy_s(4000)


def test_no_copy_is_no_link() -> None:
    """There is nothing to fit to."""
    with pytest.raises(BenchError, match="no copy"):
        fit_link([])


def test_costs_of_a_run_are_what_they_always_were() -> None:
    """Steps of one seed give these costs, to a tenth of a thousandth: a profile does not hang on who solves."""
    fit = fit_steps(steps_of(TRUE, 1000, noise=0.08, hiccups=0.02))
    found = [getattr(fit.costs, field.name) for field in fields(TRUE)]
    assert pytest.approx(EARLIER, rel=1e-4, abs=1e-12) == found
