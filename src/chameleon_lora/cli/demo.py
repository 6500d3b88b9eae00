"""`chameleon demo`: stock vLLM and Chameleon side by side on this machine."""

import argparse
import shlex
import sys
from pathlib import Path

from chameleon_lora.bench.run_folder import folder_for
from chameleon_lora.cli import say
from chameleon_lora.cli.compare import run_and_tell
from chameleon_lora.cli.option_types import positive
from chameleon_lora.compare.demo import DemoModel, DemoOptions, demo_plan
from chameleon_lora.errors import BenchError
from chameleon_lora.servers.tiny_model import default_cache_dir


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command `demo` and its options."""
    parser = subparsers.add_parser(
        "demo",
        description=(
            "Serves a small model with 24 adapters on this machine's CPU, first with stock vLLM, "
            "then with Chameleon, and compares what both do with the same requests. Some minutes."
        ),
    )
    parser.add_argument(
        "--seconds", type=positive, default=60.0, help="length of the traffic (default: 60)"
    )
    parser.add_argument(
        "--rate",
        type=_rate,
        default=None,
        metavar="auto|NUMBER",
        help="requests a second; auto is 95%% of what stock vLLM completes here (default: auto)",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the traffic (default: 0)")
    parser.add_argument(
        "--out", type=Path, default=None, metavar="DIR", help="for the files (default: runs/demo-N)"
    )
    parser.add_argument(
        "--model",
        choices=[model.value for model in DemoModel],
        default=DemoModel.SMOLLM2.value,
        help="smollm2 answers in English, tiny is random and fast (default: smollm2)",
    )
    parser.set_defaults(run=demo_command)


def demo_command(args: argparse.Namespace) -> int:
    """Runs the demo and prints its table; progress goes to stderr.

    Returns 0 done, 1 a request failed or a server did not start.

    Raises:
        ConfigError: the folder is taken.
    """
    out_dir = folder_for(args.out, "demo")
    options = DemoOptions(
        out_dir=out_dir,
        cache_dir=default_cache_dir(),
        model=DemoModel(args.model),
        seconds=args.seconds,
        rate_per_s=args.rate,
        seed=args.seed,
    )
    say(f"preparing the model {args.model} and {options.adapters} adapters")
    try:
        plan = demo_plan(options, shlex.join(["chameleon", *sys.argv[1:]]))
    except BenchError as error:
        say(f"chameleon demo: {error}")
        return 1
    return run_and_tell(plan, "demo")


def _rate(text: str) -> float | None:
    return None if text == "auto" else positive(text)
