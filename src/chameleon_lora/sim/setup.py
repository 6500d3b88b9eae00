"""What a simulation needs to know of an engine: its profile, how it works, and its policy."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.settings import EngineLimits, PolicySettings
from chameleon_lora.sim.profile import Profile
from chameleon_lora.workload.named_adapters import NamedAdapter
from chameleon_lora.workload.requests import TimedRequest

Foretell = Callable[[TimedRequest], int | None]


def foretell_nothing(request: TimedRequest) -> int | None:  # noqa: ARG001  # a Foretell
    """No output length is foretold: the policy estimates."""
    return None


def foretell_truth(request: TimedRequest) -> int | None:
    """The true output length, known at arrival."""
    return request.output_tokens


@dataclass(frozen=True, slots=True)
class EngineStyle:
    """How an engine works.

    Attributes:
        seats: requests it runs at the same time at most.
        batch_tokens: tokens that one step may compute, or admit if prompts have steps of their own.
        mixes_prefill: prompts are computed in chunks beside decoding (vLLM); False: whole, in steps of
            their own, during which decoding stands still (S-LoRA).
        is_paged: adapters run from where they lie, in KV memory (S-LoRA); False: from padded slots.
        in_host: being paged, they lie in host memory and need no copy to run (vLLM on a CPU, ADR 0028).
        slots: padded slots, whose memory is taken from the pool.
        max_rank: of a slot.
        pads_ranks: LoRA arithmetic costs `max_rank` for every token, whatever its adapter's rank.
        is_preloaded: all adapters are in host memory at the start.
    """

    seats: int = 256
    batch_tokens: int = 8192
    mixes_prefill: bool = True
    is_paged: bool = False
    in_host: bool = False
    slots: int = 8
    max_rank: int = 128
    pads_ranks: bool = False
    is_preloaded: bool = True

    def without_slots(self) -> "EngineStyle":
        """The same, with adapters that are used from host memory at their own ranks."""
        return replace(self, is_paged=True, in_host=True, slots=0, pads_ranks=False)


S_LORA = EngineStyle(seats=1000, mixes_prefill=False, is_paged=True, slots=0)
"""S-LoRA's engine: unified paging, prompts in steps of their own (its code's defaults)."""


@dataclass(frozen=True, slots=True)
class Setup:
    """One engine to simulate.

    Attributes:
        adapters: all that requests may name.
        foretell: output length that a request is said to have when it arrives.
        output_limit_tokens: every client's max_tokens; None: each knows its answer's length.
        unlimited_adapters: the memory that all adapters need comes on top of the machine's: a bound.
    """

    profile: Profile
    style: EngineStyle
    policy: PolicySettings
    adapters: Sequence[NamedAdapter]
    foretell: Foretell = field(default=foretell_nothing)
    output_limit_tokens: int | None = None
    unlimited_adapters: bool = False

    @property
    def limits(self) -> EngineLimits:
        """What the engine has in all, as the policy is told.

        Raises:
            ConfigError: slots leave no memory for the KV cache, or the profile knows no cost of copies.
        """
        memory, style = self.profile.memory, self.style
        if self.profile.in_host and not style.in_host:
            raise ConfigError(
                f"{self.profile.name} is of an engine that uses adapters from host memory, and what "
                "copies cost is not known: `chameleon calibrate --lora-backend slots` measures one with"
            )
        slot_bytes = style.slots * self.profile.adapter_bytes(style.max_rank)
        pool_bytes = memory.pool_bytes - slot_bytes
        if self.unlimited_adapters:
            pool_bytes += sum(self.profile.adapter_bytes(adapter.rank) for adapter in self.adapters)
        block_bytes = memory.block_bytes
        if pool_bytes < 2 * block_bytes:
            raise ConfigError(
                f"{style.slots} slots of rank {style.max_rank} take {slot_bytes} bytes of the "
                f"{memory.pool_bytes} that {self.profile.name} has for KV cache and adapters: use "
                "fewer slots or a lower rank"
            )
        return EngineLimits(
            seats=style.seats,
            slots=max(1, style.slots),
            kv_tokens=pool_bytes // block_bytes * memory.block_tokens,
            kv_bytes_per_token=memory.kv_bytes_per_token,
            block_tokens=memory.block_tokens,
            block_bytes=0 if style.in_host else block_bytes,
            is_paged=style.is_paged,
        )
