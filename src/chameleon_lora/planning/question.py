"""What a plan is asked: an engine, its adapters, its traffic and how fast answers must begin."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.settings import PolicySettings
from chameleon_lora.sim.figures import SimFigures
from chameleon_lora.sim.profile import Profile
from chameleon_lora.sim.setup import EngineStyle, Setup
from chameleon_lora.workload.lengths import AZURE_CONVERSATION, LengthPair
from chameleon_lora.workload.named_adapters import NamedAdapter
from chameleon_lora.workload.requests import TimedRequest, WorkloadSpec, make_workload

REQUESTS = 1500  # of a run
MIN_REQUESTS = 200  # of a run whose seconds are given; fewer have no P99
SLO_SPANS = 20.0  # a run is so many objectives long at least: a shorter one hides overload
WARM_UP_SHARE = 0.1  # of a run, whose requests are not counted


@dataclass(frozen=True, slots=True)
class Slo:
    """What is promised, in seconds.

    Attributes:
        ttft_s: that P99 of the times to the first token is within.
        gap_s: that P99 of the times between tokens is within; infinity if nothing is promised.
    """

    ttft_s: float
    gap_s: float = math.inf

    def excess(self, run: SimFigures) -> float:
        """How far a run is from the objective: 1 or less meets it."""
        gap_share = run.gap.p99_s / self.gap_s if run.gap else 0.0
        return max(run.ttft.p99_s / self.ttft_s, gap_share)


@dataclass(frozen=True, slots=True)
class PlanObjective:
    """What is to be promised.

    Attributes:
        ttft_s: as in `Slo`; None for `ttft_factor` times the mean without load.
        gap_s: as in `Slo`.
    """

    ttft_s: float | None = None
    ttft_factor: float = 5.0
    gap_s: float = math.inf

    def __post_init__(self) -> None:
        for value in (self.ttft_s, self.ttft_factor, self.gap_s):
            if value is not None and not value > 0.0:
                raise ConfigError(f"an objective of {value} cannot be met: give one above 0")


@dataclass(frozen=True, slots=True)
class PlanQuestion:
    """An engine and what it is to serve.

    Attributes:
        traffic: its rate and duration are not used: runs have their own.
        seconds: of traffic in a run; None for as long as `REQUESTS` requests take.

    Raises:
        ConfigError: no engine could serve this; the message says which limit stands against it.
    """

    profile: Profile
    style: EngineStyle
    policy: PolicySettings
    adapters: Sequence[NamedAdapter]
    traffic: WorkloadSpec
    objective: PlanObjective
    rate_per_s: float | None = None
    seconds: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        _check_ranks(self)
        _check_lengths(self)

    @property
    def lengths(self) -> tuple[LengthPair, ...]:
        """Tokens of the requests that may come, each as likely as another."""
        pairs = tuple(row.lengths for row in self.traffic.trace) or AZURE_CONVERSATION
        return tuple(self.traffic.lengths.scaled(pair) for pair in pairs)

    @property
    def setup(self) -> Setup:
        """The engine. All clients set max_tokens to the longest answer; nothing else is foretold."""
        return Setup(
            profile=self.profile,
            style=self.style,
            policy=self.policy,
            adapters=self.adapters,
            output_limit_tokens=max(output for _, output in self.lengths),
        )

    def requests(self, rate_per_s: float, slo_s: float) -> tuple[TimedRequest, ...]:
        """The requests of a run: the same at each rate, only closer together."""
        least_s = SLO_SPANS * slo_s if self.seconds is None else self.seconds
        least = REQUESTS if self.seconds is None else MIN_REQUESTS
        duration_s = max(least_s, least / rate_per_s)
        spec = replace(self.traffic, rate_per_s=rate_per_s, duration_s=duration_s)
        return make_workload(spec, self.adapters, self.seed)


def _check_ranks(question: PlanQuestion) -> None:
    style, largest = question.style, max(question.adapters, key=lambda adapter: adapter.rank)
    if not style.is_paged and largest.rank > style.max_rank:
        raise ConfigError(
            f"adapter {largest.name} has rank {largest.rank}, but slots are for ranks up to "
            f"{style.max_rank}: raise --max-lora-rank to {largest.rank} or more"
        )


def _check_lengths(question: PlanQuestion) -> None:
    style, limits = question.style, question.setup.limits
    prompt, answer = max(question.lengths, key=sum)
    holds = limits.kv_tokens
    beside, way_out = f"{style.slots} slots of rank {style.max_rank}", "fewer or narrower slots"
    if style.is_paged:
        rank = max(adapter.rank for adapter in question.adapters)
        nbytes = 0 if style.in_host else question.profile.adapter_bytes(rank)
        holds -= -(-nbytes // question.profile.memory.block_bytes) * limits.block_tokens
        beside, way_out = f"an adapter of rank {rank}", "adapters of lower ranks"
    if prompt + answer > holds:
        raise ConfigError(
            f"the longest request has {prompt} + {answer} tokens, but beside {beside} the KV cache "
            f"of {question.profile.name} holds {max(0, holds)}: use {way_out}, a GPU with more "
            "memory, or shorter requests (--length-factor)"
        )
    longest = max(prompt for prompt, _ in question.lengths)
    if not style.mixes_prefill and longest > style.batch_tokens:
        raise ConfigError(
            f"the longest prompt has {longest} tokens, but without chunked prefill a step takes "
            f"{style.batch_tokens}: raise --max-num-batched-tokens to {longest} or more"
        )
    if style.mixes_prefill and style.batch_tokens < style.seats:
        raise ConfigError(
            f"a step of {style.batch_tokens} tokens is too short for {style.seats} requests: raise "
            f"--max-num-batched-tokens to {style.seats} or more, or lower --max-num-seqs"
        )
