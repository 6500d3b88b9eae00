"""What is sent, whatever its rate: lengths, arrivals, and which adapter is asked for."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.arrivals import Arrivals, Gamma, Poisson, Recorded
from chameleon_lora.workload.lengths import AZURE_CONVERSATION, LengthPair, LengthScale
from chameleon_lora.workload.named_adapters import NamedAdapter, name_of, names_in
from chameleon_lora.workload.requests import TimedRequest, WorkloadSpec, make_workload
from chameleon_lora.workload.trace import TraceRow, recorded_rate_per_s

AZURE, TRACE, RANDOM = "azure", "trace", "random"
POISSON, GAMMA, RECORDED = "poisson", "gamma", "recorded"
TRACE_POPULARITY = "trace"
MOST_TOKENS = 1_000_000
_RESERVED_TOKENS = 2  # for what rounding adds to two lengths


@dataclass(frozen=True, slots=True)
class Traffic:
    """What is sent, whatever its rate; checked where its parts are made.

    Attributes:
        dataset: AZURE, TRACE or RANDOM.
        path: of the trace that `rows` were read from.
        rows: where lengths come from, and what RECORDED arrivals and adapters replay; empty for
            Azure's conversations.
        popularity: exponent of the adapters' power law; None takes them from the trace.
        shift_s: how often popularity moves on by a place; `math.inf` for never.
    """

    dataset: str = AZURE
    path: Path | None = None
    rows: tuple[TraceRow, ...] = field(default=(), repr=False)
    lengths: LengthScale = field(default_factory=LengthScale)
    arrivals: Arrivals = field(default_factory=Poisson)
    popularity: float | None = 1.0
    rank_alpha: float | None = None
    shift_s: float = math.inf
    base_share: float = 0.0

    @property
    def recorded_rate_per_s(self) -> float | None:
        """Requests per second of the trace itself; None where none is replayed."""
        return recorded_rate_per_s(self.rows) if isinstance(self.arrivals, Recorded) else None

    @property
    def longest_tokens(self) -> int:
        """Prompt and answer of the longest request that may be sent."""
        return max(map(sum, self._scaled_pairs()))

    def fitted(self, context_tokens: int) -> "Traffic":
        """The same traffic, all lengths made shorter by one factor if the longest does not fit.

        Raises:
            ConfigError: not even requests of two tokens fit.
        """
        if context_tokens <= _RESERVED_TOKENS:
            raise ConfigError(
                f"a context of {context_tokens} tokens holds no request; the least is "
                f"{_RESERVED_TOKENS + 1}"
            )
        fitting = self
        while fitting.longest_tokens > context_tokens:
            by = (context_tokens - _RESERVED_TOKENS) / fitting.longest_tokens
            scale = replace(fitting.lengths, factor=fitting.lengths.factor * by)
            fitting = replace(fitting, lengths=scale)
        return fitting

    def requests(
        self,
        rate_per_s: float,
        duration_s: float,
        adapters: Sequence[NamedAdapter | str],
        seed: int,
    ) -> tuple[TimedRequest, ...]:
        """What is sent to `adapters` (most popular first); equal arguments give equal requests.

        Without adapters all requests are the base model's. A trace's own adapters, unless all are
        among `adapters`, stand for these in order of popularity.

        Raises:
            ConfigError: the trace names more adapters than there are, or an adapter's rank is
                needed and unknown.
        """
        spec = WorkloadSpec(
            rate_per_s,
            duration_s,
            alpha=self.popularity or 0.0,
            lengths=self.lengths,
            base_share=self.base_share if adapters else 1.0,
            rank_alpha=self.rank_alpha if adapters else None,
            shift_s=self.shift_s,
            arrivals=self.arrivals,
            trace=self.rows,
            recorded_adapters=self.popularity is None,
        )
        if not adapters:
            return make_workload(replace(spec, recorded_adapters=False), ("",), seed)
        if self.popularity is None:
            spec = replace(spec, trace=_renamed(self.rows, adapters))
        return make_workload(spec, adapters, seed)

    def described(self) -> dict[str, object]:
        """What config.json says of it; plain values."""
        pairs = self._scaled_pairs()
        return {
            "dataset_name": self.dataset,
            "dataset_path": None if self.path is None else str(self.path),
            "trace_requests": len(self.rows) if self.path else None,
            "arrivals": _arrivals_name(self.arrivals),
            "burstiness": 1.0 / self.arrivals.cv**2 if isinstance(self.arrivals, Gamma) else None,
            "popularity": TRACE_POPULARITY if self.popularity is None else self.popularity,
            "rank_alpha": self.rank_alpha,
            "shift_s": None if self.shift_s == math.inf else self.shift_s,
            "base_share": self.base_share,
            "length_factor": self.lengths.factor,
            "max_input_tokens": _limit(self.lengths.input_tokens[1]),
            "max_output_tokens": _limit(self.lengths.output_tokens[1]),
            "mean_input_tokens": sum(pair[0] for pair in pairs) / len(pairs),
            "mean_output_tokens": sum(pair[1] for pair in pairs) / len(pairs),
        }

    def _scaled_pairs(self) -> list[LengthPair]:
        pairs = [row.lengths for row in self.rows] or AZURE_CONVERSATION
        return [self.lengths.scaled(pair) for pair in pairs]


def _renamed(
    rows: Sequence[TraceRow], adapters: Sequence[NamedAdapter | str]
) -> tuple[TraceRow, ...]:
    """The trace with names of `adapters`: its most frequent adapter becomes the first, and so on."""
    names = [name_of(adapter) for adapter in adapters]
    recorded = names_in(rows)
    if set(names).issuperset(recorded):
        return tuple(rows)
    if len(recorded) > len(names):
        raise ConfigError(
            f"the trace names {len(recorded)} adapters, the server has {len(names)}: serve more, or "
            "give --popularity an exponent"
        )
    becomes = dict(zip(recorded, names, strict=False))
    return tuple(
        row if row.adapter is None else replace(row, adapter=becomes[row.adapter]) for row in rows
    )


def _limit(most_tokens: int) -> int | None:
    return None if most_tokens == MOST_TOKENS else most_tokens


def _arrivals_name(arrivals: Arrivals) -> str:
    match arrivals:
        case Poisson():
            return POISSON
        case Gamma():
            return GAMMA
        case Recorded():
            return RECORDED
