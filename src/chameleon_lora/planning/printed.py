"""A plan as people and scripts read it."""

import dataclasses
import math
from collections.abc import Sequence
from enum import Enum
from typing import Any

from chameleon_lora.planning.binding import Binding, WhatIf
from chameleon_lora.planning.planning import CapacityPlan, MemorySplit, Replica
from chameleon_lora.planning.question import PlanQuestion
from chameleon_lora.sim.profile import Basis, known_profiles, read_profile

_GIB = 1 << 30
_TITLE_WIDTH = 24
_BASIS = {
    Basis.PAPER: "fitted to figures of the Chameleon paper",
    Basis.PUBLIC: "arithmetic from data sheets, measured by nobody",
    Basis.MEASURED: "fitted to runs of the engine",
}


def known_lines() -> list[str]:
    """The profiles that come with the package, one a line."""
    profiles = [read_profile(name) for name in known_profiles()]
    width = max(len(profile.name) for profile in profiles)
    return [
        f"{profile.name:<{width}}  {profile.model}; {profile.machine}; {_BASIS[profile.basis]}"
        for profile in profiles
    ]


def as_json(policy: str, question: PlanQuestion, plan: CapacityPlan) -> dict[str, Any]:
    """The question and its plan; enums by value, an objective that is none as null."""
    profile, style, traffic = question.profile, question.style, question.traffic
    return {
        "profile": {
            "name": profile.name,
            "model": profile.model,
            "machine": profile.machine,
            "basis": profile.basis.value,
        },
        "engine": {
            "policy": policy,
            "max_num_seqs": style.seats,
            "max_num_batched_tokens": style.batch_tokens,
            "max_loras": None if style.is_paged else style.slots,
            "max_lora_rank": None if style.is_paged else style.max_rank,
        },
        "adapters": {
            "count": len(question.adapters),
            "ranks": sorted({adapter.rank for adapter in question.adapters}),
            "alpha": None if traffic.recorded_adapters else traffic.alpha,
        },
        "traffic": {
            "arrivals": type(traffic.arrivals).__name__.lower(),
            "input_tokens_mean": _mean([pair[0] for pair in question.lengths]),
            "output_tokens_mean": _mean([pair[1] for pair in question.lengths]),
            "seed": question.seed,
        },
        **_plain(dataclasses.asdict(plan)),
    }


def table(policy: str, question: PlanQuestion, plan: CapacityPlan) -> list[str]:
    """The lines that a person reads."""
    profile, slo = question.profile, plan.slo
    gap = "" if math.isinf(slo.gap_s) else f", P99 between tokens {_time(slo.gap_s)}"
    return [
        _line("profile", f"{profile.name}: {_BASIS[profile.basis]}"),
        _line("", f"{profile.model}; {profile.machine}"),
        _line("engine", _engine(policy, question)),
        _line("adapters", _adapters(question)),
        _line("traffic", _traffic(question)),
        _line("objective", f"P99 TTFT {_time(slo.ttft_s)}{gap}"),
        _line(
            "without load",
            f"TTFT mean {_time(plan.alone_ttft_mean_s)}, P99 {_time(plan.alone_ttft_p99_s)}",
        ),
        "",
        _line("sustainable load", f"{plan.sustained_per_s:.2f} requests/s a replica"),
        _line("load planned for", f"{plan.rate_per_s:.2f} requests/s"),
        _line("replicas", str(plan.replicas)),
        "",
        *_replica_lines(plan.replica),
        "",
        *_memory_lines(question, plan.memory),
        "",
        *_binding_lines(plan.binding, plan.sustained_per_s),
    ]


def _engine(policy: str, question: PlanQuestion) -> str:
    style = question.style
    slots = "no slots: adapters run from where they lie"
    if not style.is_paged:
        slots = f"max-loras {style.slots}, max-lora-rank {style.max_rank}"
    return (
        f"policy {policy}; max-num-seqs {style.seats}, max-num-batched-tokens "
        f"{style.batch_tokens}, {slots}"
    )


def _adapters(question: PlanQuestion) -> str:
    ranks = sorted({adapter.rank for adapter in question.adapters})
    told = ", ".join(map(str, ranks))
    share = f"popularity rank^-{question.traffic.alpha:g}"
    if question.traffic.recorded_adapters:
        share = "popularity as recorded"
    return f"{len(question.adapters):,} of ranks {told}; {share}"


def _traffic(question: PlanQuestion) -> str:
    prompt = _mean([pair[0] for pair in question.lengths])
    answer = _mean([pair[1] for pair in question.lengths])
    arrivals = type(question.traffic.arrivals).__name__
    return f"{arrivals} arrivals; prompts of {prompt:,.0f} tokens and answers of {answer:,.0f} on average"


def _replica_lines(replica: Replica) -> list[str]:
    gaps = "none"
    if replica.gap_p50_s is not None and replica.gap_p99_s is not None:
        gaps = f"P50 {_time(replica.gap_p50_s)}, P99 {_time(replica.gap_p99_s)}"
    met = "" if replica.meets else "  (misses the objective)"
    return [
        f"One replica under {replica.rate_per_s:.2f} requests/s ({replica.requests:,} simulated)",
        _line("TTFT", f"P50 {_time(replica.ttft_p50_s)}, P99 {_time(replica.ttft_p99_s)}{met}"),
        _line("between tokens", gaps),
        _line("output", f"{replica.output_tokens_per_s:,.0f} tokens/s"),
        _line("adapter hit rate", f"{replica.hit_share:.1%}"),
        _line("host link busy", f"{replica.link_share:.1%}"),
        _line("before admission", f"{replica.queue_share:.1%} of requests' time"),
        _line("preemptions", f"{replica.preemptions:,}"),
    ]


def _memory_lines(question: PlanQuestion, memory: MemorySplit) -> list[str]:
    style = question.style
    slots = "" if style.is_paged else f"  ({style.slots} of rank {style.max_rank})"
    host = "" if style.is_paged else f"  (--max-cpu-loras {len(question.adapters)})"
    held = memory.requests_mean_bytes + memory.adapters_mean_bytes
    return [
        "Memory of a replica, GiB",
        _line("besides weights", _gib(memory.pool_bytes)),
        _line("  slots", _gib(memory.slots_bytes) + slots),
        _line("  KV cache", _gib(memory.kv_cache_bytes)),
        _line(
            "    requests",
            f"{_gib(memory.requests_mean_bytes)}  (mean; peak {memory.requests_peak_bytes / _GIB:.1f})",
        ),
        _line("    adapters", f"{_gib(memory.adapters_mean_bytes)}  (mean, in idle blocks)"),
        _line("    idle", f"{_gib(memory.kv_cache_bytes - held)}  (mean)"),
        _line("host, all adapters", _gib(memory.host_bytes) + host),
    ]


def _binding_lines(binding: Binding, sustained_per_s: float) -> list[str]:
    factor = binding.rate_per_s / sustained_per_s
    rows = [binding.unchanged, *binding.what_ifs]
    width = max(len(row.change) for row in rows)
    return [
        _line("binds", binding.constraint.value),
        _line("", binding.advice),
        f"At {factor:g} times the sustainable load, {binding.rate_per_s:.2f} requests/s",
        *(_what_if(row, width) for row in rows),
    ]


def _what_if(row: WhatIf, width: int) -> str:
    gap = "" if row.gap_p99_s is None else f", between tokens {_time(row.gap_p99_s)}"
    met = "meets" if row.meets else "misses"
    return f"  {row.change:<{width}}  {met:<6}  P99 TTFT {_time(row.ttft_p99_s)}{gap}"


def _line(title: str, text: str) -> str:
    return f"{title:<{_TITLE_WIDTH}}{text}"


def _time(seconds: float) -> str:
    return f"{seconds * 1000:.0f} ms" if seconds < 1.0 else f"{seconds:.2f} s"


def _gib(nbytes: int) -> str:
    return f"{nbytes / _GIB:6.1f}"


def _mean(values: Sequence[int]) -> float:
    return sum(values) / len(values)


def _plain(value: Any) -> Any:
    """Foreign to JSON: enums, tuples and infinity."""
    if isinstance(value, dict):
        return {key: _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, Enum):
        return value.value
    return None if isinstance(value, float) and math.isinf(value) else value
