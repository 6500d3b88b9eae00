"""A workload: every request that a run sends, with its time, adapter and lengths."""

import math
import random
from collections.abc import Sequence
from dataclasses import dataclass, field

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.arrivals import (
    Arrivals,
    Gamma,
    Poisson,
    Recorded,
    gamma_arrivals,
    poisson_arrivals,
    recorded_arrivals,
)
from chameleon_lora.workload.lengths import AZURE_CONVERSATION, LengthScale, draw_places
from chameleon_lora.workload.named_adapters import NamedAdapter, name_of
from chameleon_lora.workload.popularity import draw_ranks, drifted, request_shares
from chameleon_lora.workload.trace import TraceRow


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
    """What `make_workload` draws, and what it takes from a trace.

    Attributes:
        alpha: exponent of the adapters' popularity, rank^-alpha; 0 is uniform.
        base_share: share of the requests that name no adapter, in [0, 1]; it comes on top of those
            that name none in the trace, where its adapters are taken.
        rank_alpha: None for one power law over all adapters; else exponent of the popularity of
            LoRA ranks, with alpha inside each: 0 as in the paper (`popularity.request_shares`).
        shift_s: how often popularity moves on by one place (`popularity.drifted`).
        arrivals: `Recorded` takes the requests of `trace` one after the other, times and lengths.
        trace: where lengths come from; empty for the Azure conversation trace's 64 pairs. If
            arrivals are not `Recorded`, its rows are drawn, each once before any comes again.
        recorded_adapters: each request names the adapter of its row in `trace`; alpha, rank_alpha
            and shift_s are not used.
    """

    rate_per_s: float
    duration_s: float
    alpha: float = 1.0
    lengths: LengthScale = field(default_factory=LengthScale)
    base_share: float = 0.0
    rank_alpha: float | None = None
    shift_s: float = math.inf
    arrivals: Arrivals = field(default_factory=Poisson)
    trace: tuple[TraceRow, ...] = field(default=(), repr=False)
    recorded_adapters: bool = False

    def __post_init__(self) -> None:
        if not 0.0 <= self.base_share <= 1.0:
            raise ConfigError(f"a base share of {self.base_share} is outside 0..1")
        needs_trace = self.recorded_adapters or isinstance(self.arrivals, Recorded)
        if needs_trace and not self.trace:
            raise ConfigError(
                "recorded arrivals or adapters of a trace of 0 requests; way out: "
                "trace=read_trace(path), or draw them"
            )


def make_workload(
    spec: WorkloadSpec, adapters: Sequence[str | NamedAdapter], seed: int
) -> tuple[TimedRequest, ...]:
    """The requests of `spec` in order of arrival; equal arguments give equal requests.

    `adapters` is the order of popularity, most popular first. Arrivals, adapters, base-model share
    and lengths are drawn from streams of their own: another rate changes no request but its time,
    unless popularity drifts.

    Raises:
        ConfigError: `adapters` is empty, lacks an adapter of the trace that is to be named, or a
            number of `spec` allows no request.
    """
    arrivals_s = _arrivals_s(spec, _stream(seed, "arrivals"))
    pairs = tuple(row.lengths for row in spec.trace) or AZURE_CONVERSATION
    rows = _rows(spec, len(pairs), len(arrivals_s), _stream(seed, "lengths"))
    names = _names(spec, adapters, arrivals_s, rows, _stream(seed, "adapters"))
    to_base = _stream(seed, "base")
    requests = []
    for index, (arrival_s, row, name) in enumerate(zip(arrivals_s, rows, names, strict=True)):
        adapter = None if to_base.random() < spec.base_share else name
        requests.append(TimedRequest(index, arrival_s, adapter, *spec.lengths.scaled(pairs[row])))
    return tuple(requests)


def _arrivals_s(spec: WorkloadSpec, rng: random.Random) -> tuple[float, ...]:
    match spec.arrivals:
        case Poisson():
            return poisson_arrivals(spec.rate_per_s, spec.duration_s, rng)
        case Gamma(cv=cv):
            return gamma_arrivals(spec.rate_per_s, spec.duration_s, cv, rng)
        case Recorded():
            times_s = [row.arrival_s for row in spec.trace]
            return recorded_arrivals(times_s, spec.rate_per_s, spec.duration_s)


def _rows(spec: WorkloadSpec, rows: int, count: int, rng: random.Random) -> Sequence[int]:
    """Which of the `rows` of lengths stands behind each request."""
    match spec.arrivals:
        case Recorded():
            return [index % rows for index in range(count)]
        case Poisson() | Gamma():
            return draw_places(rows, count, rng)


def _names(
    spec: WorkloadSpec,
    adapters: Sequence[str | NamedAdapter],
    arrivals_s: Sequence[float],
    rows: Sequence[int],
    rng: random.Random,
) -> Sequence[str | None]:
    names = [name_of(adapter) for adapter in adapters]
    if spec.recorded_adapters:
        _check_known(spec.trace, names)
        return [spec.trace[row].adapter for row in rows]
    shares = request_shares(adapters, spec.alpha, spec.rank_alpha)
    places = draw_ranks(shares, len(arrivals_s), rng)
    if spec.shift_s != math.inf:
        by_rank = spec.rank_alpha is not None
        places = drifted(places, arrivals_s, adapters, spec.shift_s, by_rank=by_rank)
    return [names[place] for place in places]


def _check_known(trace: Sequence[TraceRow], names: Sequence[str]) -> None:
    unknown = {row.adapter for row in trace if row.adapter is not None}.difference(names)
    if unknown:
        raise ConfigError(
            f"the trace names {len(unknown)} adapters that are not among the {len(names)} given, "
            f"the first {min(unknown)!r}; way out: trace_adapters(trace)"
        )


def _stream(seed: int, purpose: str) -> random.Random:
    """A generator for one purpose: adding draws to one stream moves no other."""
    return random.Random(f"{seed}:{purpose}")
