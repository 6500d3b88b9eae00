"""Profiles, engines and requests for tests of the simulator, small enough to count by hand."""

from collections.abc import Sequence
from dataclasses import replace

from chameleon_lora.policy.settings import PolicySettings, Preset, preset
from chameleon_lora.sim.engine import Engine
from chameleon_lora.sim.kernel import Kernel
from chameleon_lora.sim.outcome import SimOutcome
from chameleon_lora.sim.profile import Basis, Link, Memory, Profile, StepCosts
from chameleon_lora.sim.run import _Arrivals
from chameleon_lora.sim.setup import EngineStyle, Setup
from chameleon_lora.workload.named_adapters import NamedAdapter
from chameleon_lora.workload.requests import TimedRequest

FREE = StepCosts(base_s=0.0, prefill_token_s=0.0, decode_request_s=0.0, context_token_s=0.0)
SECOND_A_STEP = replace(FREE, base_s=1.0)
ANY = StepCosts(
    base_s=0.01,
    prefill_token_s=1e-4,
    decode_request_s=1e-3,
    context_token_s=1e-5,
    attention_pair_s=1e-8,
    lora_base_s=2e-3,
    lora_prefill_base_s=1e-3,
    lora_adapter_s=1e-3,
    lora_prefill_rank_s=1e-6,
    lora_decode_rank_s=1e-5,
    lora_adapter_rank_s=1e-5,
)
VLLM = preset(Preset.VLLM)
ONE_SEAT = EngineStyle(seats=1, slots=1, max_rank=8)


def profile(
    step: StepCosts = SECOND_A_STEP, blocks: int = 1000, rank_blocks: int = 1, link_s: float = 0.0
) -> Profile:
    """So many blocks of 16 tokens, of which an adapter takes `rank_blocks` for each rank.

    The host link copies a rank in `link_s` and the device one in a tenth of it; the disk takes 1 s.
    """
    block_bytes = 16_000
    rank_bytes = rank_blocks * block_bytes
    return Profile(
        name="test",
        model="none",
        machine="none",
        basis=Basis.MEASURED,
        source="",
        memory=Memory(blocks * block_bytes, 1000, rank_bytes),
        step=step,
        host_link=Link(rank_bytes / link_s if link_s else 1e18),
        device_copy=Link(10 * rank_bytes / link_s if link_s else 1e18),
        disk=Link(1e18, latency_s=1.0),
    )


def setup(
    profile: Profile,
    style: EngineStyle = ONE_SEAT,
    policy: PolicySettings = VLLM,
    ranks: Sequence[int] = (),
) -> Setup:
    """An engine with adapters a0, a1, ... of these ranks."""
    adapters = tuple(NamedAdapter(f"a{n}", rank) for n, rank in enumerate(ranks))
    return Setup(profile, style, policy, adapters)


def requests(*given: tuple[float, str | None, int, int]) -> list[TimedRequest]:
    """Requests of (arrival, adapter, input tokens, output tokens)."""
    return [TimedRequest(index, *item) for index, item in enumerate(given)]


def run(
    setup: Setup, requests: Sequence[TimedRequest], make: type[Engine] = Engine
) -> tuple[SimOutcome, Engine]:
    """What `simulate` does, with another engine class; answers the engine too."""
    kernel, outcome = Kernel(), SimOutcome([])
    engine = make(setup, kernel, outcome)
    _Arrivals(setup, requests, kernel, engine).plan_next()
    kernel.run()
    return outcome, engine
