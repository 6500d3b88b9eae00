"""What keeps an engine from more load? Each limit is doubled in turn; the one that helps binds."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from enum import Enum

from chameleon_lora.errors import ConfigError
from chameleon_lora.planning.question import PlanQuestion, Slo
from chameleon_lora.planning.trial import run_at
from chameleon_lora.sim.figures import SimFigures
from chameleon_lora.sim.profile import Link
from chameleon_lora.sim.setup import Setup

OVERLOADS = (1.25, 1.5, 2.0, 3.0)  # times the sustainable load, until the objective is missed
CLEAR_EXCESS = 1.25  # of P99 TTFT: less says little of what binds
LONG_WAY = 2.0  # if that takes so many times the load and no change helps, the objective binds
RELIEF = 0.5  # a change helps that leaves so much of what load adds to a request alone, or meets
PATIENCE = 2.0  # if no change helps, but an objective so many times as long does, that binds
SLOTS_SHARE = 0.25  # of the pool: from there on fewer slots are tried for the memory they free


class Constraint(Enum):
    """What can keep an engine from more load."""

    SLOTS = "slots"
    KV_MEMORY = "kv memory"
    SEATS = "seats"
    BATCH_TOKENS = "batch tokens"
    LINK = "host link"
    OBJECTIVE = "objective"
    COMPUTE = "compute"


@dataclass(frozen=True, slots=True)
class WhatIf:
    """One change, at a load that is too high without it.

    Attributes:
        change: in a user's words.
        ttft_p99_s, gap_p99_s: with it, in seconds; the gap is None if no request has two tokens.
        meets: the objective.
    """

    constraint: Constraint
    change: str
    ttft_p99_s: float
    gap_p99_s: float | None
    meets: bool


@dataclass(frozen=True, slots=True)
class Binding:
    """What binds, and the evidence.

    Attributes:
        rate_per_s: the load of the what-ifs.
        unchanged: the engine as it is, at that load.
    """

    constraint: Constraint
    advice: str
    rate_per_s: float
    unchanged: WhatIf
    what_ifs: tuple[WhatIf, ...]


def binding(
    question: PlanQuestion, slo: Slo, unloaded: SimFigures, sustained_per_s: float
) -> Binding:
    """What keeps the engine from more than the load that it sustains. Some 7 runs.

    `unloaded` are the figures of requests that never meet.
    """
    setup = question.setup
    factor, (unchanged, excess) = _overloaded(question, setup, sustained_per_s, slo)
    rate = factor * sustained_per_s
    tried = [
        _what_if(question, changed, constraint, change, rate, slo)
        for constraint, change, changed in _changes(setup, slo)
    ]
    floor = slo.excess(unloaded)
    enough = max(1.0, floor + RELIEF * (excess - floor))
    helpful = [(left, what_if) for what_if, left in tried if left <= enough]
    if helpful:
        constraint = min(helpful, key=lambda pair: pair[0])[1].constraint
    elif factor >= LONG_WAY or excess <= PATIENCE:
        constraint = Constraint.OBJECTIVE
    else:
        constraint = Constraint.COMPUTE
    what_ifs = tuple(what_if for what_if, _ in tried)
    return Binding(constraint, _ADVICE[constraint], rate, unchanged, what_ifs)


def _overloaded(
    question: PlanQuestion, setup: Setup, sustained_per_s: float, slo: Slo
) -> tuple[float, tuple[WhatIf, float]]:
    """By how much the load must grow until the engine clearly misses the objective, and how it does."""
    factor, missed = OVERLOADS[0], None
    for factor in OVERLOADS:
        missed = _what_if(
            question, setup, Constraint.COMPUTE, "as it is", factor * sustained_per_s, slo
        )
        gap_s = missed[0].gap_p99_s or 0.0  # which rises no further than a step's length
        if missed[0].ttft_p99_s > CLEAR_EXCESS * slo.ttft_s or gap_s > slo.gap_s:
            break
    assert missed is not None
    return factor, missed


def _what_if(
    question: PlanQuestion, setup: Setup, constraint: Constraint, change: str, rate: float, slo: Slo
) -> tuple[WhatIf, float]:
    run = run_at(question, setup, rate, slo).figures
    excess = slo.excess(run)
    gap_s = run.gap.p99_s if run.gap else None
    return WhatIf(constraint, change, run.ttft.p99_s, gap_s, excess <= 1.0), excess


def _changes(setup: Setup, slo: Slo) -> Iterator[tuple[Constraint, str, Setup]]:
    """What to change, in a user's words, and the engine with it; all can be had."""
    style, profile = setup.style, setup.profile
    memory = replace(profile.memory, pool_bytes=2 * profile.memory.pool_bytes)
    yield (
        Constraint.KV_MEMORY,
        "twice the memory for KV cache and adapters",
        replace(setup, profile=replace(profile, memory=memory)),
    )
    if not style.is_paged:
        yield from _slot_changes(setup)
    if style.batch_tokens >= 2 * style.seats or not style.mixes_prefill:
        seats = replace(style, seats=2 * style.seats)
        yield Constraint.SEATS, f"--max-num-seqs {seats.seats}", replace(setup, style=seats)
    tokens = style.batch_tokens * 2 if slo.gap_s == float("inf") else style.batch_tokens // 2
    if tokens >= style.seats and style.mixes_prefill:
        yield (
            Constraint.BATCH_TOKENS,
            f"--max-num-batched-tokens {tokens}",
            replace(setup, style=replace(style, batch_tokens=tokens)),
        )
    if style.in_host:
        return
    free = replace(profile, host_link=Link(1e15), device_copy=Link(1e15))
    yield Constraint.LINK, "adapters copied in no time", replace(setup, profile=free)


def _slot_changes(setup: Setup) -> Iterator[tuple[Constraint, str, Setup]]:
    """Twice the slots; half of them where they take much memory."""
    style, profile = setup.style, setup.profile
    counts = {Constraint.SLOTS: 2 * style.slots}
    slots_bytes = style.slots * profile.adapter_bytes(style.max_rank)
    if style.slots > 1 and slots_bytes > SLOTS_SHARE * profile.memory.pool_bytes:
        counts[Constraint.KV_MEMORY] = style.slots // 2
    for constraint, slots in counts.items():
        changed = replace(setup, style=replace(style, slots=slots))
        if _is_possible(changed):
            yield constraint, f"--max-loras {slots}", changed


def _is_possible(setup: Setup) -> bool:
    try:
        return setup.limits.kv_tokens > 0
    except ConfigError:
        return False


_ADVICE = {
    Constraint.SLOTS: "requests wait for slots: raise --max-loras",
    Constraint.KV_MEMORY: "requests wait for KV memory: a GPU with more of it, an fp8 KV cache, "
    "less of it for slots (--max-loras, --max-lora-rank), or shorter requests",
    Constraint.SEATS: "requests wait for seats: raise --max-num-seqs",
    Constraint.BATCH_TOKENS: "prompts are computed in chunks of the wrong size: change "
    "--max-num-batched-tokens as tried",
    Constraint.LINK: "requests wait for copies of adapters: keep more of them on the device "
    "(--policy chameleon), or a faster host link",
    Constraint.OBJECTIVE: "the engine keeps up, but the objective leaves little time beyond what a "
    "request takes alone: a longer --slo-ttft, or more replicas",
    Constraint.COMPUTE: "steps take the time there is: more replicas, a faster GPU, adapters of "
    "lower ranks, or shorter requests",
}
