"""`chameleon demo`: stock vLLM and Chameleon side by side on this machine."""

import argparse
import sys
from pathlib import Path

from chameleon_lora.bench.run_folder import new_folder
from chameleon_lora.compare.demo import DemoModel, DemoOptions, run_demo
from chameleon_lora.errors import ChameleonError
from chameleon_lora.servers.tiny_model import default_cache_dir

_WORST_CLIENT_DELAY_S = 0.5


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command `demo` and its options."""
    parser = subparsers.add_parser(
        "demo",
        description=(
            "Serves a small model with 24 adapters on this machine's CPU, first with stock vLLM, "
            "then with Chameleon, and sends both the same requests. About six minutes."
        ),
    )
    parser.add_argument(
        "--seconds", type=_positive, default=60.0, help="length of the traffic (default: 60)"
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

    Returns 0 done, 1 a request failed or a server did not start, 2 the folder is taken.
    """
    if args.out is not None and args.out.exists():
        _say(f"chameleon demo: {args.out} exists already and is not overwritten; name another one")
        return 2
    out_dir = args.out or new_folder(Path("runs"), "demo")
    options = DemoOptions(
        out_dir=out_dir.resolve(),
        cache_dir=default_cache_dir(),
        model=DemoModel(args.model),
        seconds=args.seconds,
        rate_per_s=args.rate,
        seed=args.seed,
    )
    try:
        result = run_demo(options, say=_say)
    except ChameleonError as error:
        _say(f"chameleon demo: {error}")
        return 1
    print(result.table)
    print(f"\n{result.rate_per_s:.2f} requests/s for {args.seconds:.0f} s; files: {out_dir}")
    late_s = max(arm.summary.max_lateness_s for arm in (result.stock, result.chameleon))
    if late_s > _WORST_CLIENT_DELAY_S:
        print(
            f"The client itself was up to {late_s:.1f} s late: the machine is too busy for these "
            "figures to mean much."
        )
    return 1 if result.stock.summary.failed or result.chameleon.summary.failed else 0


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _positive(text: str) -> float:
    value = float(text)
    if value <= 0.0:
        raise argparse.ArgumentTypeError(f"{text} is not above 0")
    return value


def _rate(text: str) -> float | None:
    return None if text == "auto" else _positive(text)
