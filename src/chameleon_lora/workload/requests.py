"""A workload: every request that a run sends, with its time, adapter and lengths."""

import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.arrivals import poisson_arrivals
from chameleon_lora.workload.lengths import AZURE_CONVERSATION, LengthScale, draw_lengths
from chameleon_lora.workload.popularity import draw_ranks, power_law_shares


@dataclass(frozen=True, slots=True)
class TimedRequest:
    """One request to send.

    Attributes:
        index: position in order of arrival, from 0.
        arrival_s: when it is to be sent, in seconds since the run began.
        adapter: None for the base model.
    """

    index: int
    arrival_s: float
    adapter: str | None
    input_tokens: int
    output_tokens: int


@dataclass(frozen=True, slots=True)
class WorkloadSpec:
    """What `make_workload` draws.

    Attributes:
        alpha: exponent of the adapters' popularity, rank^-alpha; 0 is uniform.
        base_share: share of the requests that name no adapter, in [0, 1].
    """

    rate_per_s: float
    duration_s: float
    alpha: float = 1.0
    lengths: LengthScale = field(default_factory=LengthScale)
    base_share: float = 0.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.base_share <= 1.0:
            raise ConfigError(f"a base share of {self.base_share} is outside 0..1")


def make_workload(
    spec: WorkloadSpec, adapters: Sequence[str], seed: int
) -> tuple[TimedRequest, ...]:
    """The requests of `spec` in order of arrival; equal arguments give equal requests.

    `adapters` is the order of popularity, most popular first. Arrivals, adapters and lengths are
    drawn from three streams of their own, so that another rate changes no request but its time.

    Raises:
        ConfigError: `adapters` is empty, or a number of `spec` allows no request.
    """
    arrivals = poisson_arrivals(spec.rate_per_s, spec.duration_s, _stream(seed, "arrivals"))
    shares = power_law_shares(len(adapters), spec.alpha)
    chosen = draw_ranks(shares, len(arrivals), _stream(seed, "adapters"))
    to_base = _stream(seed, "base")
    lengths = draw_lengths(
        AZURE_CONVERSATION, spec.lengths, len(arrivals), _stream(seed, "lengths")
    )
    return tuple(
        TimedRequest(
            index=index,
            arrival_s=arrival_s,
            adapter=None if to_base.random() < spec.base_share else adapters[rank],
            input_tokens=input_tokens,
            output_tokens=output_tokens,
        )
        for index, (arrival_s, rank, (input_tokens, output_tokens)) in enumerate(
            zip(arrivals, chosen, lengths, strict=True)
        )
    )


def _stream(seed: int, purpose: str) -> random.Random:
    """A generator for one purpose: adding draws to one stream moves no other."""
    return random.Random(f"{seed}:{purpose}")
