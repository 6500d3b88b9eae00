"""The options that say what is sent: `chameleon bench` and `chameleon compare` share them."""

import argparse
import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

from chameleon_lora.cli.option_types import count, not_negative, positive, share
from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.arrivals import Arrivals, Gamma, Poisson, Recorded
from chameleon_lora.workload.lengths import AZURE_CONVERSATION, LengthPair, LengthScale
from chameleon_lora.workload.named_adapters import NamedAdapter, name_of
from chameleon_lora.workload.requests import TimedRequest, WorkloadSpec, make_workload
from chameleon_lora.workload.trace import (
    MILLISECOND_S,
    TraceRow,
    read_trace,
    recorded_rate_per_s,
)

AZURE, TRACE, RANDOM = "azure", "trace", "random"
POISSON, GAMMA, RECORDED = "poisson", "gamma", "recorded"
TRACE_POPULARITY = "trace"
MOST_TOKENS = 1_000_000
RANDOM_INPUT_TOKENS, RANDOM_OUTPUT_TOKENS = 1024, 128  # as `vllm bench serve`
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


def add_traffic_options(parser: argparse.ArgumentParser) -> None:
    """Adds what `traffic_of` reads, and `--seed`."""
    _add_lengths(parser.add_argument_group("lengths"))
    _add_arrivals(parser.add_argument_group("arrivals and adapters"))


def traffic_of(args: argparse.Namespace) -> Traffic:
    """The traffic that the arguments ask for.

    Raises:
        ConfigError: they contradict each other, or the trace cannot be read.
    """
    dataset = args.dataset_name or (AZURE if args.dataset_path is None else TRACE)
    _check_dataset(args, dataset)
    path = args.dataset_path
    if path is not None:
        rows = read_trace(path, timestamp_s=args.timestamp_s)
    elif dataset == RANDOM:
        prompt, answer = args.random_input_len, args.random_output_len
        rows = (TraceRow(0.0, None, prompt or RANDOM_INPUT_TOKENS, answer or RANDOM_OUTPUT_TOKENS),)
    else:
        rows = ()
    return Traffic(
        dataset=dataset,
        path=path,
        rows=rows,
        lengths=LengthScale(
            args.length_factor, (1, args.max_input_tokens), (1, args.max_output_tokens)
        ),
        arrivals=_arrivals(args),
        popularity=_popularity(args, rows),
        rank_alpha=args.rank_alpha,
        shift_s=args.shift_s,
        base_share=args.base_share,
    )


def _check_dataset(args: argparse.Namespace, dataset: str) -> None:
    if dataset == TRACE and args.dataset_path is None:
        raise ConfigError("--dataset-name trace needs --dataset-path FILE, a trace to replay")
    if dataset == RANDOM and args.dataset_path is not None:
        raise ConfigError(
            f"--dataset-name random reads no file: leave --dataset-path {args.dataset_path} out"
        )
    if dataset != RANDOM and (args.random_input_len or args.random_output_len):
        raise ConfigError(
            f"--random-input-len and --random-output-len are of --dataset-name random, not "
            f"{dataset}: use --length-factor, --max-input-tokens or --max-output-tokens"
        )


def _arrivals(args: argparse.Namespace) -> Arrivals:
    """Where not said: a trace's own; else gamma if a burstiness is given, Poisson if not."""
    burstiness, path = args.burstiness, args.dataset_path
    default = GAMMA if burstiness is not None else POISSON if path is None else RECORDED
    match args.arrivals or default:
        case "gamma":
            return Gamma(1.0 / math.sqrt(1.0 if burstiness is None else burstiness))
        case name if burstiness is not None and burstiness != 1.0:
            raise ConfigError(f"--burstiness {burstiness:g} is of --arrivals gamma, not {name}")
        case "recorded":
            if path is None:
                raise ConfigError("--arrivals recorded needs --dataset-path FILE")
            return Recorded()
        case _:
            return Poisson()


def _popularity(args: argparse.Namespace, rows: Sequence[TraceRow]) -> float | None:
    if args.popularity != TRACE_POPULARITY:
        return float(args.popularity)
    if not any(row.adapter is not None for row in rows):
        raise ConfigError(
            "--popularity trace needs a trace that names adapters (--dataset-path): "
            "give one, or an exponent such as 1.0"
        )
    if args.rank_alpha is not None or args.shift_s != math.inf:
        raise ConfigError(
            "--popularity trace takes each request's adapter from the trace: "
            "leave --rank-alpha and --shift-s out"
        )
    return None


def _renamed(
    rows: Sequence[TraceRow], adapters: Sequence[NamedAdapter | str]
) -> tuple[TraceRow, ...]:
    """The trace with names of `adapters`: its most frequent adapter becomes the first, and so on."""
    names = [name_of(adapter) for adapter in adapters]
    uses = Counter(row.adapter for row in rows if row.adapter is not None)
    if all(name in names for name in uses):
        return tuple(rows)
    if len(uses) > len(names):
        raise ConfigError(
            f"the trace names {len(uses)} adapters, the server has {len(names)}: serve more, or "
            "give --popularity an exponent"
        )
    ordered = sorted(uses, key=lambda name: (-uses[name], name))
    becomes = dict(zip(ordered, names, strict=False))
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


def _add_lengths(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--dataset-name", choices=(AZURE, TRACE, RANDOM),
        help="azure: lengths of Azure's conversations; trace: of --dataset-path; random: fixed "
        "(default: azure, or trace where a path is given)",
    )  # fmt: skip
    group.add_argument(
        "--dataset-path", type=Path, metavar="FILE",
        help="Azure CSV, timed JSONL (Mooncake, timed_trace, with adapters), or a detailed result "
        "of vllm bench serve; may be gzipped",
    )  # fmt: skip
    group.add_argument(
        "--timestamp-s", type=positive, default=MILLISECOND_S, metavar="S",
        help="unit of a JSONL trace's timestamps in seconds (default: 0.001)",
    )  # fmt: skip
    group.add_argument(
        "--random-input-len", type=count, metavar="N",
        help=f"tokens of each prompt (default: {RANDOM_INPUT_TOKENS})",
    )  # fmt: skip
    group.add_argument(
        "--random-output-len", type=count, metavar="N",
        help=f"tokens of each answer (default: {RANDOM_OUTPUT_TOKENS})",
    )  # fmt: skip
    group.add_argument(
        "--length-factor", type=positive, default=1.0, metavar="F",
        help="multiplies all lengths (default: 1)",
    )  # fmt: skip
    group.add_argument(
        "--max-input-tokens", type=count, default=MOST_TOKENS, metavar="N",
        help="longer prompts are cut to it",
    )  # fmt: skip
    group.add_argument(
        "--max-output-tokens", type=count, default=MOST_TOKENS, metavar="N",
        help="longer answers are cut to it",
    )  # fmt: skip


def _add_arrivals(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--arrivals", choices=(POISSON, GAMMA, RECORDED),
        help="recorded: the trace's times, stretched to the rate (default: poisson, or recorded "
        "where a path is given)",
    )  # fmt: skip
    group.add_argument(
        "--burstiness", type=positive, metavar="K",
        help="shape of gamma gaps: 1 is Poisson, below it are bursts; their coefficient of "
        "variation is K^-0.5",
    )  # fmt: skip
    group.add_argument(
        "--popularity", type=_popularity_word, default=1.0, metavar="ALPHA",
        help="the nth adapter is asked for in proportion to n^-ALPHA; 0 is uniform; trace takes "
        "each request's adapter from the trace (default: 1.0)",
    )  # fmt: skip
    group.add_argument(
        "--rank-alpha", type=not_negative, metavar="A",
        help="that law inside each LoRA rank, and m^-A among the ranks; 0 is the paper's mix",
    )  # fmt: skip
    group.add_argument(
        "--shift-s", type=positive, default=math.inf, metavar="S",
        help="popularity moves on by one adapter each S seconds (default: never)",
    )  # fmt: skip
    group.add_argument(
        "--base-share", type=share, default=0.0, metavar="X",
        help="share of requests for the base model (default: 0)",
    )  # fmt: skip
    group.add_argument(
        "--seed", type=int, default=0, metavar="N", help="of the traffic (default: 0)"
    )


def _popularity_word(text: str) -> float | str:
    return text if text == TRACE_POPULARITY else not_negative(text)
