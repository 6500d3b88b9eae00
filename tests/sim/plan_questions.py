"""Questions to a planner about an engine so small that a plan takes a second."""

from dataclasses import replace
from typing import Any

from chameleon_lora.planning.question import PlanObjective, PlanQuestion
from chameleon_lora.policy.settings import Preset, preset
from chameleon_lora.sim.profile import Basis, Link, Memory, Profile, StepCosts
from chameleon_lora.sim.setup import EngineStyle
from chameleon_lora.workload.named_adapters import named_adapters
from chameleon_lora.workload.requests import WorkloadSpec
from chameleon_lora.workload.trace import TraceRow

KIB = 1 << 10
SMALL = Profile(
    name="small",
    model="none",
    machine="none",
    basis=Basis.PUBLIC,
    source="",
    memory=Memory(
        pool_bytes=20_000 * 16 * KIB, kv_bytes_per_token=16 * KIB, adapter_bytes_per_rank=256 * KIB
    ),
    step=StepCosts(base_s=0.2, prefill_token_s=1e-3, decode_request_s=1e-3, context_token_s=0.0),
    host_link=Link(1e9),
    device_copy=Link(1e10),
    disk=Link(1e9),
)
STYLE = EngineStyle(seats=64, batch_tokens=1024, slots=8, max_rank=8)


def traffic(prompt: int = 200, answer: int = 10, alpha: float = 0.0) -> WorkloadSpec:
    """Requests that are all of these lengths."""
    rows = (TraceRow(0.0, None, prompt, answer),)
    return WorkloadSpec(rate_per_s=1.0, duration_s=1.0, alpha=alpha, trace=rows)


def question(
    profile: Profile = SMALL,
    style: EngineStyle = STYLE,
    policy: Preset = Preset.VLLM,
    adapters: int = 4,
    spec: WorkloadSpec | None = None,
    objective: PlanObjective | None = None,
    seconds: float = 60.0,
    **more: Any,
) -> PlanQuestion:
    """Four adapters of rank 8 on eight slots; P99 TTFT of 5 s; runs of 200 requests or more."""
    return PlanQuestion(
        profile=profile,
        style=style,
        policy=preset(policy),
        adapters=named_adapters(adapters, (8,)),
        traffic=spec or traffic(),
        objective=objective or PlanObjective(5.0),
        seconds=seconds,
        **more,
    )


def with_pool(tokens: int) -> Profile:
    """The small engine with memory for so many tokens."""
    memory = replace(SMALL.memory, pool_bytes=tokens * SMALL.memory.kv_bytes_per_token)
    return replace(SMALL, memory=memory)
