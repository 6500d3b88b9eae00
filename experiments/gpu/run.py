"""Chameleon on a GPU: `python -m experiments.gpu.run --out DIR`; docs/gpu.md explains it.

`--dry-run` does the same with tiny models on a CPU.
"""

import argparse
import shlex
import signal
import sys
import tempfile
import time
from pathlib import Path

from chameleon_lora.errors import ChameleonError
from experiments.gpu.engines import adapters_folder
from experiments.gpu.machine import gpu_name
from experiments.gpu.outcome import Outcome, Status, place_of, read_outcome
from experiments.gpu.runner import Runner, child_command, is_done
from experiments.gpu.scale import RunOptions, write_options
from experiments.gpu.stages import Stage, chosen
from experiments.gpu.table import markdown

NO_LIMIT_S = 1e9
COMMAND = "python -m experiments.gpu.run"
REPORT = "report.md"


def main(argv: list[str]) -> int:
    """0 all is done, 1 a stage failed, 2 asked for wrongly, 3 stages are left, 130 it was ended."""
    args = _parser().parse_args(argv)
    work = (
        args.work or Path(tempfile.gettempdir()) / f"chameleon-gpu{'-dry' if args.dry_run else ''}"
    )
    options = RunOptions(
        out=args.out.absolute(),
        work=work.absolute(),
        is_dry=args.dry_run,
        backend=args.attention_backend,
        compiles=not args.no_compile,
        duration_s=args.duration,
        repeats=args.repeats,
        capacity=args.capacity,
        slo_s=args.slo_ttft,
    )
    try:
        stages = chosen(tuple(args.stages))
        if args.list:
            print(_listed(options, stages))
            return 0
        write_options(options)
    except ChameleonError as error:
        print(f"gpu: {error}", file=sys.stderr)
        return 2
    return _run(options, stages, args.limit_s, shlex.join([*COMMAND.split(), *argv]))


def _run(options: RunOptions, stages: list[Stage], limit_s: float, command: str) -> int:
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    if not adapters_folder(options).is_dir():  # made on another machine, or deleted since
        place_of(options.out, "adapters").unlink(missing_ok=True)
    runner = Runner(
        options.out,
        [stage.step(options) for stage in stages],
        limit_s,
        gpu_name(),
        child_command(options.out),
        options.scale.environment,
        time.monotonic,  # noqa: TID251  # the run's one clock
        lambda line: print(line, file=sys.stderr, flush=True),
    )
    is_whole = runner.run()
    names = [stage.name for stage in chosen(())]
    outcomes = _all_outcomes(options.out, names)
    report = markdown(outcomes, names, command, is_dry=options.is_dry)
    (options.out / REPORT).write_text(report, encoding="utf-8")
    print(report)
    if not is_whole:
        return 130
    found = [outcomes[stage.name].status for stage in stages if stage.name in outcomes]
    if Status.FAILED in found:
        return 1
    return 3 if Status.LEFT in found else 0


def _all_outcomes(out: Path, names: list[str]) -> dict[str, Outcome]:
    return {name: found for name in names if (found := read_outcome(out, name)) is not None}


def _listed(options: RunOptions, stages: list[Stage]) -> str:
    outcomes = _all_outcomes(options.out, [stage.name for stage in stages])
    return "\n".join(
        f"{step.name:<16}{stage.group:<10}{step.estimate_s:6.0f} s  "
        f"{'done' if is_done(outcomes, step.name) else ''}"
        for stage in stages
        for step in (stage.step(options),)
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog=COMMAND,
        description="Chameleon on a GPU: first whether it is right, then what it gains. A stage that "
        "is done is not done again: call it as often as you like with the same --out.",
    )
    parser.add_argument("--out", type=Path, required=True, metavar="DIR", help="results go there")
    parser.add_argument(
        "--work", type=Path, metavar="DIR",
        help="models and adapters are made there, 9 GB for a GPU (default: a folder in /tmp)",
    )  # fmt: skip
    parser.add_argument("--dry-run", action="store_true", help="tiny models, on a CPU")
    parser.add_argument(
        "--stages", nargs="*", default=[], metavar="NAME", help="stages or groups (default: all)"
    )
    parser.add_argument("--list", action="store_true", help="print the stages, run nothing")
    parser.add_argument(
        "--limit-s", type=float, default=NO_LIMIT_S, metavar="S",
        help="end within so many seconds; a stage that does not fit is left for the next call",
    )  # fmt: skip
    parser.add_argument("--attention-backend", metavar="NAME", help="vLLM's (default: its choice)")
    parser.add_argument(
        "--no-compile", action="store_true", help="CUDA graphs without torch.compile"
    )
    parser.add_argument("--duration", type=float, metavar="S", help="of each run of a comparison")
    parser.add_argument("--repeats", type=int, default=1, metavar="N", help="of each comparison")
    parser.add_argument(
        "--capacity", type=float, metavar="R", help="of stock, requests/s (default: measured)"
    )
    parser.add_argument("--slo-ttft", type=float, metavar="S", help="as of `chameleon compare`")
    return parser


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
