"""`chameleon plan`: the load an engine carries, and how many engines a load needs, by simulation."""

import argparse
import json
import time
from pathlib import Path

from chameleon_lora.adapters.inspect import RANKS, fitting_rank
from chameleon_lora.cli import say
from chameleon_lora.cli.option_types import count, positive
from chameleon_lora.errors import ConfigError
from chameleon_lora.planning.planning import NoLoadError, plan
from chameleon_lora.planning.printed import as_json, known_lines, table
from chameleon_lora.planning.question import PlanObjective, PlanQuestion
from chameleon_lora.policy.settings import Preset, preset
from chameleon_lora.sim.profile import Profile, read_profile
from chameleon_lora.sim.setup import S_LORA, EngineStyle
from chameleon_lora.workload.arrivals import Poisson, Recorded
from chameleon_lora.workload.lengths import AZURE_CONVERSATION, LengthScale
from chameleon_lora.workload.named_adapters import (
    PAPER_RANKS,
    NamedAdapter,
    named_adapters,
    trace_adapters,
)
from chameleon_lora.workload.requests import WorkloadSpec
from chameleon_lora.workload.trace import (
    MILLISECOND_S,
    TraceRow,
    read_trace,
    recorded_rate_per_s,
)

ADAPTERS = 100
SEATS, BATCH_TOKENS, SLOTS = 256, 2048, 8
clock_s = time.monotonic  # noqa: TID251  # times the planning itself, for people


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command `plan` and its options."""
    parser = subparsers.add_parser(
        "plan",
        description=(
            "Simulates an engine under rising load until P99 of the time to the first token misses "
            "the objective. About half a minute; docs/capacity-planning.md says what to believe."
        ),
    )
    parser.add_argument("--list", action="store_true", help="the profiles that come with chameleon")
    parser.add_argument(
        "--profile", metavar="NAME|FILE", help="model and GPU: one of --list, or calibrate's file"
    )
    _add_adapters(parser.add_argument_group("adapters"))
    _add_traffic(parser.add_argument_group("traffic"))
    _add_engine(parser.add_argument_group("engine, by vLLM's names"))
    parser.add_argument(
        "--seconds", type=positive, metavar="S",
        help="of traffic in each run (default: what 1,500 requests take, 20 objectives at least)",
    )  # fmt: skip
    parser.add_argument("--seed", type=int, default=0, help="of the traffic (default: 0)")
    parser.add_argument("--json", action="store_true", help="the same figures as JSON")
    parser.set_defaults(run=plan_command)


def plan_command(args: argparse.Namespace) -> int:
    """Print the plan; 0 done, 1 no load meets the objective."""
    if args.list:
        print("\n".join(known_lines()))
        return 0
    began_s = clock_s()
    try:
        question = asked(args)
        answer = plan(question)
    except NoLoadError as error:
        say(f"chameleon plan: {error}")
        return 1
    name = args.policy
    if args.json:
        print(json.dumps(as_json(name, question, answer), indent=2, allow_nan=False))
    else:
        print("\n".join(table(name, question, answer)))
    say(f"chameleon plan: took {clock_s() - began_s:.1f} s")
    return 0


def asked(args: argparse.Namespace) -> PlanQuestion:
    """The question that the arguments put.

    Raises:
        ConfigError: they contradict each other, or no engine could serve this.
    """
    if args.profile is None:
        raise ConfigError("--profile is missing: name one of `chameleon plan --list`, or a file")
    profile = read_profile(args.profile)
    trace = () if args.trace is None else read_trace(args.trace, timestamp_s=args.timestamp_s)
    adapters = _adapters(args, trace)
    return PlanQuestion(
        profile=profile,
        style=_style(args, profile, adapters),
        policy=preset(Preset(args.policy)),
        adapters=adapters,
        traffic=_traffic(args, trace),
        objective=PlanObjective(args.slo_ttft, args.slo, args.slo_itl),
        rate_per_s=args.rate or (recorded_rate_per_s(trace) if trace else None),
        seconds=args.seconds,
        seed=args.seed,
    )


def _add_adapters(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--adapters", type=count, metavar="N",
        help=f"how many (default: those of the trace, else {ADAPTERS})",
    )  # fmt: skip
    group.add_argument(
        "--ranks", type=_ranks, default=PAPER_RANKS, metavar="R,R",
        help="taken in rotation (default: 8,16,32,64,128)",
    )  # fmt: skip
    group.add_argument(
        "--popularity", choices=("power", "uniform"),
        help="power: the nth adapter has n^-alpha of the requests (default)",
    )  # fmt: skip
    group.add_argument("--alpha", type=positive, metavar="A", help="of power (default: 1.0)")


def _add_traffic(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--trace", type=Path, metavar="FILE",
        help="arrivals, lengths and adapters as recorded (default: Poisson, Azure's lengths)",
    )  # fmt: skip
    group.add_argument(
        "--timestamp-s", type=positive, default=MILLISECOND_S, metavar="S",
        help="unit of a JSONL trace's timestamps in seconds (default: 0.001)",
    )  # fmt: skip
    group.add_argument(
        "--rate", type=positive, metavar="R",
        help="requests/s to plan for (default: the trace's, else what one replica carries)",
    )  # fmt: skip
    group.add_argument(
        "--input-tokens", type=count, metavar="N", help="mean of the prompts, spread as Azure's"
    )
    group.add_argument(
        "--output-tokens", type=count, metavar="N", help="mean of the answers, spread as Azure's"
    )
    group.add_argument(
        "--length-factor", type=positive, default=1.0, metavar="F",
        help="multiplies the lengths of the trace, or of Azure's conversations (default: 1)",
    )  # fmt: skip
    group.add_argument("--slo-ttft", type=positive, metavar="S", help="P99 TTFT in seconds")
    group.add_argument(
        "--slo", type=_times, default=5.0, metavar="5x",
        help="P99 TTFT in means of an engine without load, if --slo-ttft is not given (default: 5x)",
    )  # fmt: skip
    group.add_argument(
        "--slo-itl", type=positive, default=float("inf"), metavar="S",
        help="P99 of the times between tokens in seconds (default: none)",
    )  # fmt: skip


def _add_engine(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--policy", choices=[name.value for name in Preset], default=Preset.CHAMELEON.value,
        help="slora is S-LoRA's engine, the others vLLM's (default: chameleon)",
    )  # fmt: skip
    group.add_argument("--max-num-seqs", type=count, metavar="N", help=f"default: {SEATS}")
    group.add_argument("--max-loras", type=count, metavar="N", help=f"default: {SLOTS}")
    group.add_argument(
        "--max-lora-rank", type=int, choices=RANKS, metavar="N",
        help="default: the least of vLLM's that fits the adapters",
    )  # fmt: skip
    group.add_argument(
        "--max-num-batched-tokens", type=count, metavar="N", help=f"default: {BATCH_TOKENS}"
    )


def _adapters(args: argparse.Namespace, trace: tuple[TraceRow, ...]) -> tuple[NamedAdapter, ...]:
    if _takes_adapters_of(args, trace):
        return trace_adapters(trace, args.ranks)
    return named_adapters(args.adapters or ADAPTERS, args.ranks)


def _takes_adapters_of(args: argparse.Namespace, trace: tuple[TraceRow, ...]) -> bool:
    return args.adapters is None and any(row.adapter is not None for row in trace)


def _traffic(args: argparse.Namespace, trace: tuple[TraceRow, ...]) -> WorkloadSpec:
    """The traffic; its rate and duration are not the question's (`planning.question`)."""
    is_recorded = _takes_adapters_of(args, trace)
    if is_recorded and (args.popularity or args.alpha):
        raise ConfigError(
            f"the adapters of {args.trace} have their own popularity: give --adapters N to draw "
            "others, or leave --popularity and --alpha out"
        )
    if args.popularity == "uniform" and args.alpha:
        raise ConfigError(f"--alpha {args.alpha} is of --popularity power: leave one of them out")
    if trace and (args.input_tokens or args.output_tokens):
        raise ConfigError(
            f"{args.trace} has its own lengths: scale them by --length-factor, or leave --trace out"
        )
    return WorkloadSpec(
        rate_per_s=1.0,
        duration_s=1.0,
        alpha=0.0 if args.popularity == "uniform" else args.alpha or 1.0,
        lengths=LengthScale(args.length_factor),
        arrivals=Recorded() if trace else Poisson(),
        trace=trace or _lengths_of_mean(args.input_tokens, args.output_tokens),
        recorded_adapters=is_recorded,
    )


def _lengths_of_mean(prompt: int | None, answer: int | None) -> tuple[TraceRow, ...]:
    """Azure's conversations, stretched to these means; as they are where there is none."""
    pairs = AZURE_CONVERSATION
    by_prompt = prompt * len(pairs) / sum(pair[0] for pair in pairs) if prompt else 1.0
    by_answer = answer * len(pairs) / sum(pair[1] for pair in pairs) if answer else 1.0
    return tuple(
        TraceRow(0.0, None, max(1, round(p * by_prompt)), max(1, round(a * by_answer)))
        for p, a in pairs
    )


def _style(
    args: argparse.Namespace, profile: Profile, adapters: tuple[NamedAdapter, ...]
) -> EngineStyle:
    if args.policy == Preset.SLORA.value:
        if args.max_loras or args.max_lora_rank:
            raise ConfigError("S-LoRA has no slots: leave --max-loras and --max-lora-rank out")
        return EngineStyle(
            seats=args.max_num_seqs or S_LORA.seats,
            batch_tokens=args.max_num_batched_tokens or S_LORA.batch_tokens,
            mixes_prefill=S_LORA.mixes_prefill,
            is_paged=S_LORA.is_paged,
            slots=S_LORA.slots,
        )
    largest = max(adapter.rank for adapter in adapters)
    style = EngineStyle(
        seats=args.max_num_seqs or SEATS,
        batch_tokens=args.max_num_batched_tokens or BATCH_TOKENS,
        slots=args.max_loras or SLOTS,
        max_rank=args.max_lora_rank or fitting_rank(largest),
    )
    if profile.in_host and (args.max_loras or args.max_lora_rank):
        raise ConfigError(
            f"{profile.name} is of an engine without slots: leave --max-loras and --max-lora-rank out"
        )
    return style.without_slots() if profile.in_host else style


def _times(text: str) -> float:
    return positive(text.removesuffix("x"))


def _ranks(text: str) -> tuple[int, ...]:
    return tuple(count(part) for part in text.split(","))
