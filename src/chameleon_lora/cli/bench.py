"""`chameleon bench`: open-loop traffic for many adapters on a running server, and its figures."""

import argparse
import json
import sys
from pathlib import Path

from chameleon_lora.bench.measuring import BenchRun, Measured, measure
from chameleon_lora.bench.printed import (
    beside_lines,
    has_fallen_behind,
    printable,
    result_lines,
    sweep_lines,
)
from chameleon_lora.bench.run_folder import new_folder
from chameleon_lora.cli.bench_options import add_bench_options
from chameleon_lora.cli.bench_plan import planned
from chameleon_lora.cli.progress import LiveLine
from chameleon_lora.errors import ChameleonError, ConfigError


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command `bench` and its options."""
    parser = subparsers.add_parser(
        "bench",
        description=(
            "Sends requests at their own times, whatever the server does, and tells how long they "
            "took, by adapter, by LoRA rank and all together. docs/benchmarking.md has more. "
            "Exit code: 0 all well; 1 a request failed, the client fell behind or the run was "
            "stopped; 2 asked for wrongly, or no server there."
        ),
        allow_abbrev=False,
    )
    add_bench_options(parser)
    parser.set_defaults(run=bench_command)


def bench_command(args: argparse.Namespace) -> int:
    """Runs all rates and prints what came out; progress goes to stderr.

    Returns 0 all well, 1 a request failed, the client fell behind or a run was stopped, 2 asked for
    wrongly or no server there.
    """
    live = LiveLine(sys.stderr)
    try:
        if args.out is not None and args.out.exists():
            raise ConfigError(f"{args.out} exists already and is not overwritten; name another one")
        plan = planned(args)
    except ChameleonError as error:
        live.say(f"chameleon bench: {printable(str(error))}")
        return 2
    for note in plan.notes:
        live.say(f"chameleon bench: {printable(note)}")
    out = args.out or new_folder(Path("runs"), "bench")
    done: list[Measured] = []
    for run in plan.runs:
        folder = out if len(plan.runs) == 1 else out / f"rate-{run.rate_per_s:g}"
        done.append(_measured(run, folder, live, is_json=args.json))
        if done[-1].stopped is not None:
            break
    if len(done) > 1 and not args.json:
        print("\n".join(sweep_lines([measured.result for measured in done])))
    live.say(f"files: {out}")
    return 0 if all(map(_is_well, done)) else 1


def _measured(run: BenchRun, folder: Path, live: LiveLine, *, is_json: bool) -> Measured:
    """Runs and prints one rate."""
    told = live.progress(f"{run.rate_per_s:g} requests/s")
    measured = measure(run, folder, told, live.every_s)
    live.clear()
    if is_json:
        print(json.dumps(measured.result), flush=True)
    else:
        lines = result_lines(measured.result) + beside_lines(measured.result, measured.errors)
        print("\n".join(lines), flush=True)
    if measured.stopped is not None:
        live.say(f"chameleon bench: {measured.stopped}; what came before is kept in {folder}")
    return measured


def _is_well(measured: Measured) -> bool:
    """Can the figures be trusted, and did every request succeed, warm-up included?"""
    is_whole = measured.stopped is None and not measured.errors
    return is_whole and not has_fallen_behind(measured.result)
