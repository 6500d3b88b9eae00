"""`chameleon compare`: the same requests on two or more servers, and what one setting changes."""

import argparse
import json
import shlex
import sys
import time
from collections.abc import Sequence
from pathlib import Path

from chameleon_lora.bench.discovery import adapters_below
from chameleon_lora.bench.run_folder import folder_for
from chameleon_lora.cli import say
from chameleon_lora.cli.option_types import count, not_negative, positive
from chameleon_lora.cli.traffic import add_traffic_options, traffic_of
from chameleon_lora.compare.arms import (
    FLAGS,
    STOCK,
    Arm,
    arm_of,
    check_one_difference,
    differences,
)
from chameleon_lora.compare.comparison import (
    SLO_FACTOR,
    Comparison,
    ComparisonPlan,
)
from chameleon_lora.compare.points import LoadPoints, TrafficSpec
from chameleon_lora.compare.printed import comparison_table
from chameleon_lora.errors import BenchError, ConfigError
from chameleon_lora.servers.launching import ServedModel
from chameleon_lora.workload.named_adapters import name_of

AT_SLO = "slo"
DEFAULT_ARMS = (STOCK, "chameleon")
SPECIAL_IDS = 3  # beginning, end and padding of most vocabularies
DEFAULT_VOCABULARY = 32_000
VLLM_SEATS, VLLM_SLOTS = 256, 1  # what vLLM takes without --max-num-seqs and --max-loras


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `compare`; `args.rest` is filled with vLLM's flags."""
    parser = subparsers.add_parser(
        "compare",
        usage="chameleon compare MODEL --adapters DIR [--arms ARM ...] [--load SHARE ...] [options] "
        "[any vLLM flag]",
        epilog="vLLM's flags are given to every arm alike; put the first of them last, such as "
        "--max-loras 4. docs/comparing.md explains the figures.",
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="as for vllm serve")
    parser.add_argument(
        "--adapters", type=Path, required=True, metavar="DIR", help="all arms' adapters"
    )
    _add_arms(parser.add_argument_group("arms"))
    _add_runs(parser.add_argument_group("runs"))
    add_traffic_options(parser)
    parser.set_defaults(run=compare_command, takes_rest=True)


def compare_command(args: argparse.Namespace) -> int:
    """Run the comparison; 0 done, 1 a request or a server failed.

    Raises:
        ChameleonError: asked for wrongly.
    """
    plan = plan_of(args)
    for arm in plan.arms[1:]:
        say(f"{arm.label} differs from {plan.arms[0].label}: {_differs(plan.arms[0], arm)}")
    return run_and_tell(plan, "compare")


def run_and_tell(plan: ComparisonPlan, command: str) -> int:
    """Run the comparison and print its tables; 0 done, 1 a request or a server failed."""
    try:
        found = Comparison(plan, time.monotonic, say).run()  # noqa: TID251  # an edge's own clock
    except BenchError as error:
        say(f"chameleon {command}: {error}")
        return 1
    print(comparison_table(found))
    print(
        f"\n{found.stopped}; files: {plan.folder}; a page of them: chameleon report {plan.folder}"
    )
    troubles = list(found.troubles)
    if found.failed:
        troubles.append(f"{found.failed} requests failed; each run's summary.json says why")
    for trouble in troubles:
        say(f"chameleon {command}: {trouble}")
    return 1 if troubles else 0


def plan_of(args: argparse.Namespace) -> ComparisonPlan:
    """What the arguments ask for; makes the folder.

    Raises:
        ChameleonError: they contradict each other, or name what is not there.
    """
    adapters = adapters_below(args.adapters)
    rest = tuple(args.rest)
    served = ServedModel(args.model, args.adapters.resolve(), tuple(map(name_of, adapters)), rest)
    arms = _arms(args, served)
    traffic = traffic_of(args)
    if args.warmup >= args.duration:
        raise ConfigError(
            f"--warmup {args.warmup:g} leaves nothing of --duration {args.duration:g}: give less"
        )
    slots = _number(rest, "--max-loras", VLLM_SLOTS)
    spec = TrafficSpec(
        traffic.requests, adapters, _token_ids(args), args.duration, args.warmup, args.seed,
        traffic.described(),
    )  # fmt: skip
    return ComparisonPlan(
        arms=arms,
        load_points=LoadPoints(
            len(adapters), slots, tuple(args.load), tuple(args.cliff), args.cliff_load
        ),
        traffic=spec,
        seats=_number(rest, "--max-num-seqs", VLLM_SEATS),
        folder=folder_for(args.out, "compare"),
        capacity_per_s=None if args.capacity == AT_SLO else args.capacity,
        is_capacity_at_slo=args.capacity == AT_SLO,
        slo_s=args.slo_ttft,
        searches=args.throughput_at_slo,
        repeats=args.repeats,
        width=args.width,
        budget_s=args.budget,
        command=_command(),
    )


def _command() -> str:
    """What was typed: the program by its name, or a script that calls it."""
    script = Path(sys.argv[0])
    return shlex.join([str(script) if script.suffix == ".py" else script.name, *sys.argv[1:]])


def _arms(args: argparse.Namespace, served: ServedModel) -> tuple[Arm, ...]:
    named = [word for words in args.arms for word in words.split(",") if word]
    arms = tuple(
        arm_of(text, served) for text in (*(named or ([] if args.arm else DEFAULT_ARMS)), *args.arm)
    )
    labels = [arm.label for arm in arms]
    if len(arms) < 2 or len(set(labels)) < len(labels):
        raise ConfigError(
            f"the arms {', '.join(labels)} are no comparison: give two or more, each with a label of "
            "its own"
        )
    if not args.allow_differences:
        check_one_difference(arms[0], arms[1:])
    return arms


def _token_ids(args: argparse.Namespace) -> tuple[int, int]:
    """Half-open range of prompt ids, inside the model's vocabulary where its size can be read."""
    try:
        fields = json.loads((Path(args.model) / "config.json").read_text(encoding="utf-8"))
        size = int(fields["vocab_size"])
    except (OSError, ValueError, KeyError, TypeError):
        size = DEFAULT_VOCABULARY
    return SPECIAL_IDS, max(SPECIAL_IDS + 1, size)


def _number(rest: Sequence[str], flag: str, otherwise: int) -> int:
    """The value of one of vLLM's flags."""
    for place, word in enumerate(rest):
        name, separator, value = word.partition("=")
        if name.replace("_", "-") != flag:
            continue
        text = value if separator else (*rest, "")[place + 1]
        if text.isdecimal() and int(text) > 0:
            return int(text)
        raise ConfigError(f"{flag} is {text!r}; give a whole number of 1 or more")
    return otherwise


def _differs(base: Arm, arm: Arm) -> str:
    return "; ".join(differences(base, arm)) or "in nothing"


def _capacity(text: str) -> float | str:
    return text if text == AT_SLO else positive(text)


def _add_arms(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--arms", nargs="+", default=[], metavar="ARM",
        help=f"the first is the base; of {', '.join((STOCK, *FLAGS))} (default: "
        f"{' '.join(DEFAULT_ARMS)})",
    )  # fmt: skip
    group.add_argument(
        "--arm", action="append", default=[], metavar="LABEL=COMMAND",
        help="one more: a command line with {port}, also {model} and {adapters}; or a built-in arm "
        "with more flags, as 'big=chameleon --set cache.host_bytes=8000000000'",
    )  # fmt: skip
    group.add_argument(
        "--allow-differences", action="store_true",
        help="compare arms that differ from the base in more settings than one",
    )  # fmt: skip


def _add_runs(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--load", type=positive, nargs="*", default=[0.7, 0.9, 1.05], metavar="SHARE",
        help="loads, as shares of the base's capacity (default: 0.7 0.9 1.05)",
    )  # fmt: skip
    group.add_argument(
        "--capacity", type=_capacity, default=None, metavar="R|slo",
        help="requests/s that count as the base's capacity; slo: the highest load at which it meets "
        "the objective (default: what it completes with as much work as it can take)",
    )  # fmt: skip
    group.add_argument(
        "--throughput-at-slo", action="store_true",
        help="search for the highest load whose P99 time to first token meets the objective",
    )  # fmt: skip
    group.add_argument(
        "--slo-ttft", type=positive, metavar="S",
        help=f"the objective in seconds (default: {SLO_FACTOR:g} times the base's unloaded mean)",
    )  # fmt: skip
    group.add_argument(
        "--cliff", type=positive, nargs="*", default=[], metavar="RATIO",
        help="also runs with RATIO adapters for each slot, as 0.5 1 2 4 8",
    )  # fmt: skip
    group.add_argument(
        "--cliff-load", type=positive, default=0.7, metavar="SHARE", help="of those (default: 0.7)"
    )
    group.add_argument(
        "--duration", type=positive, default=30.0, metavar="S", help="of each run (default: 30)"
    )
    group.add_argument(
        "--warmup", type=not_negative, default=5.0, metavar="S",
        help="of each run, not counted (default: 5)",
    )  # fmt: skip
    group.add_argument(
        "--repeats", type=count, default=3, metavar="N", help="at most, of every arm (default: 3)"
    )
    group.add_argument(
        "--width", type=positive, default=0.1, metavar="X",
        help="stop once all intervals of P99 time to first token are so narrow, in parts of their "
        "ratio (default: 0.1)",
    )  # fmt: skip
    group.add_argument(
        "--budget", type=positive, default=3600.0, metavar="S",
        help="begin no repeat that would end later (default: 3600)",
    )  # fmt: skip
    group.add_argument("--out", type=Path, metavar="DIR", help="default: runs/compare-N")
