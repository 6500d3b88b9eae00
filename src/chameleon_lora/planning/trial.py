"""Runs of a question's engine: without load, at a load, and the load at which to begin a search."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from chameleon_lora.metrics.step_work import StepWork
from chameleon_lora.planning.question import WARM_UP_SHARE, PlanObjective, PlanQuestion, Slo
from chameleon_lora.policy.settings import Preset, preset
from chameleon_lora.sim.figures import SimFigures, figures
from chameleon_lora.sim.outcome import SimOutcome
from chameleon_lora.sim.run import simulate
from chameleon_lora.sim.setup import Setup
from chameleon_lora.workload.lengths import LengthPair
from chameleon_lora.workload.requests import TimedRequest

ALONE_REQUESTS = 500
PROBE_SHARE = 0.25  # of a run's requests, which tell whether the rest is worth the time


@dataclass(frozen=True, slots=True)
class LoadTrial:
    """A simulated run at one arrival rate: every request's outcome, and the figures of them."""

    rate_per_s: float
    outcome: SimOutcome
    figures: SimFigures


def run_at(question: PlanQuestion, setup: Setup, rate_per_s: float, slo: Slo) -> LoadTrial:
    """What an engine does under a load."""
    return _run(setup, question.requests(rate_per_s, slo.ttft_s), rate_per_s)


def figures_at(question: PlanQuestion, setup: Setup, rate_per_s: float, slo: Slo) -> SimFigures:
    """The figures of `run_at`; of its first quarter if half of these come late already.

    Then the P99 of the whole run is late in any case: more requests do not speed up earlier ones.
    """
    requests = question.requests(rate_per_s, slo.ttft_s)
    first = _run(setup, requests[: int(len(requests) * PROBE_SHARE)], rate_per_s).figures
    return first if first.ttft.p50_s > slo.ttft_s else _run(setup, requests, rate_per_s).figures


def run_alone(question: PlanQuestion, setup: Setup) -> SimFigures:
    """The figures of requests that come one after the other, each when the one before has ended."""
    pairs = question.lengths
    spacing_s = 2.0 * max(_alone_s(setup, pair) for pair in pairs)
    drawn = question.requests(1.0, 1.0)[:ALONE_REQUESTS]
    requests = [replace(r, arrival_s=place * spacing_s) for place, r in enumerate(drawn)]
    return figures(simulate(setup, requests))


def promised(question: PlanQuestion) -> Slo:
    """The objective in seconds: where a factor is given, of stock vLLM's mean without load.

    So the same question of two policies has one objective.
    """
    objective: PlanObjective = question.objective
    if objective.ttft_s is not None:
        return Slo(objective.ttft_s, objective.gap_s)
    setup = question.setup
    is_vllm = setup.style.in_host or not setup.style.is_paged
    stock = replace(setup, policy=preset(Preset.VLLM)) if is_vllm else setup
    mean_s = run_alone(question, stock).ttft.mean_s
    return Slo(objective.ttft_factor * mean_s, objective.gap_s)


def rough_rate_per_s(question: PlanQuestion, setup: Setup) -> float:
    """A load near the most that seats and KV memory allow; slots and the link are left out."""
    pairs, limits = question.lengths, setup.limits
    prompt = sum(pair[0] for pair in pairs) / len(pairs)
    answer = sum(pair[1] for pair in pairs) / len(pairs)
    rank = sum(adapter.rank for adapter in setup.adapters) / len(setup.adapters)
    held = prompt + answer / 2.0
    batch = max(1, min(limits.seats, int(limits.kv_tokens / held)))
    decode_s = setup.profile.step.step_s(
        StepWork(
            decode_requests=batch,
            context_tokens=int(batch * held),
            lora_decode_ranks=int(batch * rank),
            adapters=1,
            adapter_ranks=int(rank),
        )
    )
    work = StepWork(
        int(prompt), attention_pairs=prompt**2 / 2.0, lora_prefill_ranks=int(prompt * rank)
    )
    work.adapters, work.adapter_ranks = 1, int(rank)
    prompt_s = setup.profile.step.step_s(work) - setup.profile.step.base_s
    return 1.0 / (answer * decode_s / batch + prompt_s)


def _run(setup: Setup, requests: Sequence[TimedRequest], rate_per_s: float) -> LoadTrial:
    outcome = simulate(setup, requests)
    warm_up_s = WARM_UP_SHARE * requests[-1].arrival_s
    return LoadTrial(rate_per_s, outcome, figures(outcome, warm_up_s))


def _alone_s(setup: Setup, pair: LengthPair) -> float:
    """More than a request takes that has the engine for itself, in seconds."""
    prompt, answer = pair
    step, rank = setup.profile.step, max(adapter.rank for adapter in setup.adapters)
    rank = max(rank, setup.style.max_rank) if setup.style.pads_ranks else rank
    chunks = -(-prompt // setup.style.batch_tokens)
    prefill = StepWork(prompt, attention_pairs=float(prompt) ** 2, lora_prefill_ranks=prompt * rank)
    decode = StepWork(
        decode_requests=1, context_tokens=prompt + answer, lora_decode_ranks=rank, adapters=1
    )
    prefill.adapters = 1
    prefill.adapter_ranks = decode.adapter_ranks = rank
    load_s = setup.profile.host_link.copy_s(setup.profile.adapter_bytes(rank))
    steps_s = chunks * step.step_s(prefill) + answer * step.step_s(decode)
    return setup.profile.request_s + load_s + steps_s
