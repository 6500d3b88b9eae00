"""The options that say what is sent: `chameleon bench` and `chameleon compare` share them."""

import argparse
import math
from collections.abc import Sequence
from pathlib import Path

from chameleon_lora.cli.option_types import count, not_negative, positive, share
from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.arrivals import Arrivals, Gamma, Poisson, Recorded
from chameleon_lora.workload.lengths import LengthScale
from chameleon_lora.workload.trace import MILLISECOND_S, TraceRow, read_trace
from chameleon_lora.workload.traffic import (
    AZURE,
    GAMMA,
    MOST_TOKENS,
    POISSON,
    RANDOM,
    RECORDED,
    TRACE,
    TRACE_POPULARITY,
    Traffic,
)

RANDOM_INPUT_TOKENS, RANDOM_OUTPUT_TOKENS = 1024, 128  # as `vllm bench serve`


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
