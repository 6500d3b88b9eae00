"""How much load can this engine carry, and how many of them does a load need?"""

import math
from dataclasses import dataclass

from chameleon_lora.errors import ConfigError
from chameleon_lora.planning.binding import Binding, binding
from chameleon_lora.planning.question import PlanQuestion, Slo
from chameleon_lora.planning.sustained import sustained_rate
from chameleon_lora.planning.trial import (
    LoadTrial,
    figures_at,
    promised,
    rough_rate_per_s,
    run_alone,
    run_at,
)
from chameleon_lora.sim.figures import SimFigures

START_SHARE = 0.6  # of the rough rate, where the search begins
TOLERANCE = 0.03  # of the sustainable load
MORE_REPLICAS = 3  # tried beyond the quotient of the loads


class NoLoadError(ConfigError):
    """No load is low enough for the objective; the message says what stands against it."""


@dataclass(frozen=True, slots=True)
class Replica:
    """One engine under its share of the traffic.

    Attributes:
        requests: that the figures stand on.
        gap_p50_s, gap_p99_s: between tokens; None if no request has two.
        hit_share: of requests with an adapter, that found it on the device.
        link_share: of the time, in which the host link copied.
        queue_share: of requests' time, spent before admission.
        meets: the objective.
    """

    rate_per_s: float
    requests: int
    ttft_mean_s: float
    ttft_p50_s: float
    ttft_p99_s: float
    gap_p50_s: float | None
    gap_p99_s: float | None
    hit_share: float
    link_share: float
    queue_share: float
    output_tokens_per_s: float
    preemptions: int
    meets: bool


@dataclass(frozen=True, slots=True)
class MemorySplit:
    """Bytes of one replica.

    Attributes:
        pool_bytes: what weights and activations leave; slots and KV cache together.
        slots_bytes: of padded slots for adapters.
        kv_cache_bytes: the KV cache, which requests and idle adapters share.
        requests_mean_bytes, requests_peak_bytes: of the KV cache, held by requests.
        adapters_mean_bytes: of the KV cache, held by adapters.
        host_bytes: of host memory, for all adapters.
    """

    pool_bytes: int
    slots_bytes: int
    kv_cache_bytes: int
    requests_mean_bytes: int
    requests_peak_bytes: int
    adapters_mean_bytes: int
    host_bytes: int


@dataclass(frozen=True, slots=True)
class CapacityPlan:
    """The answer.

    Attributes:
        alone_ttft_mean_s, alone_ttft_p99_s: of requests that never meet.
        sustained_per_s: requests a second that one replica carries within the objective.
        rate_per_s: all replicas together; the question's, or what one replica sustains.
    """

    slo: Slo
    alone_ttft_mean_s: float
    alone_ttft_p99_s: float
    sustained_per_s: float
    rate_per_s: float
    replicas: int
    replica: Replica
    memory: MemorySplit
    binding: Binding


@dataclass(frozen=True, slots=True)
class EngineCapacity:
    """What one engine carries: the objective in seconds, its figures without load, and the load."""

    slo: Slo
    unloaded: SimFigures
    sustained_per_s: float


def plan(question: PlanQuestion) -> CapacityPlan:
    """The sustainable load, the replicas for the wanted one, and what binds. Some 20 runs.

    The same question, the same plan.

    Raises:
        NoLoadError: no load meets the objective.
    """
    capacity = carried_by_one(question)
    slo, sustained_per_s = capacity.slo, capacity.sustained_per_s
    rate_per_s = question.rate_per_s or sustained_per_s
    replicas, trial = _replicas(question, slo, rate_per_s, sustained_per_s)
    return CapacityPlan(
        slo=slo,
        alone_ttft_mean_s=capacity.unloaded.ttft.mean_s,
        alone_ttft_p99_s=capacity.unloaded.ttft.p99_s,
        sustained_per_s=sustained_per_s,
        rate_per_s=rate_per_s,
        replicas=replicas,
        replica=_replica(trial, slo),
        memory=_memory(question, trial),
        binding=binding(question, slo, capacity.unloaded, sustained_per_s),
    )


def carried_by_one(question: PlanQuestion) -> EngineCapacity:
    """The highest load of one engine within its objective.

    Raises:
        NoLoadError: no load meets the objective.
    """
    setup, slo = question.setup, promised(question)
    unloaded = run_alone(question, setup)
    _check_alone(question, unloaded, slo)
    sustained_per_s = sustained_rate(
        lambda rate: figures_at(question, setup, rate, slo),
        slo.ttft_s,
        START_SHARE * rough_rate_per_s(question, setup),
        TOLERANCE,
        slo.gap_s,
    ).rate_per_s
    if not sustained_per_s:
        raise NoLoadError(
            f"even without load the objective is missed as soon as two requests meet ({_told(slo)}): "
            "give a longer one, a faster GPU or shorter prompts"
        )
    return EngineCapacity(slo, unloaded, sustained_per_s)


def _check_alone(question: PlanQuestion, unloaded: SimFigures, slo: Slo) -> None:
    """A request that has the engine for itself must be in time."""
    if slo.excess(unloaded) <= 1.0:
        return
    gap = f", P99 between tokens {unloaded.gap.p99_s:.3g} s" if unloaded.gap else ""
    raise NoLoadError(
        f"the objective ({_told(slo)}) binds: on {question.profile.name} without any load P99 TTFT "
        f"is {unloaded.ttft.p99_s:.3g} s{gap}; give a longer one, a faster GPU or shorter prompts"
    )


def _told(slo: Slo) -> str:
    gap = "" if math.isinf(slo.gap_s) else f", P99 between tokens {slo.gap_s:.3g} s"
    return f"P99 TTFT {slo.ttft_s:.3g} s{gap}"


def _replicas(
    question: PlanQuestion, slo: Slo, rate_per_s: float, sustained_per_s: float
) -> tuple[int, LoadTrial]:
    """How many engines the load needs, and one of them under its share.

    P99 is not quite monotone in the load, so the share is tried; a further replica if it is late.
    """
    replicas = max(1, math.ceil(rate_per_s / sustained_per_s - 1e-9))
    for _ in range(MORE_REPLICAS):
        trial = run_at(question, question.setup, rate_per_s / replicas, slo)
        if slo.excess(trial.figures) <= 1.0:
            return replicas, trial
        replicas += 1
    return replicas, run_at(question, question.setup, rate_per_s / replicas, slo)


def _replica(trial: LoadTrial, slo: Slo) -> Replica:
    run = trial.figures
    return Replica(
        rate_per_s=trial.rate_per_s,
        requests=run.requests,
        ttft_mean_s=run.ttft.mean_s,
        ttft_p50_s=run.ttft.p50_s,
        ttft_p99_s=run.ttft.p99_s,
        gap_p50_s=run.gap.p50_s if run.gap else None,
        gap_p99_s=run.gap.p99_s if run.gap else None,
        hit_share=run.hit_share,
        link_share=run.link_share,
        queue_share=run.queue_share,
        output_tokens_per_s=run.output_tokens_per_s,
        preemptions=run.preemptions,
        meets=slo.excess(run) <= 1.0,
    )


def _memory(question: PlanQuestion, trial: LoadTrial) -> MemorySplit:
    profile, style, limits = question.profile, question.style, question.setup.limits
    kv_cache_bytes = limits.kv_blocks.count * profile.memory.block_bytes
    return MemorySplit(
        pool_bytes=profile.memory.pool_bytes,
        slots_bytes=style.slots * profile.adapter_bytes(style.max_rank),
        kv_cache_bytes=kv_cache_bytes,
        requests_mean_bytes=round(kv_cache_bytes * trial.figures.used_share),
        requests_peak_bytes=trial.outcome.peak_blocks * profile.memory.block_bytes,
        adapters_mean_bytes=round(kv_cache_bytes * trial.figures.held_share),
        host_bytes=sum(profile.adapter_bytes(adapter.rank) for adapter in question.adapters),
    )
