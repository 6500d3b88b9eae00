"""`chameleon reproduce`: the paper's evaluation again, on the simulator."""

import argparse
import multiprocessing
import os
import shutil
import signal
from collections.abc import Sequence
from concurrent.futures import Executor, ProcessPoolExecutor
from pathlib import Path

from chameleon_lora.bench.run_folder import new_folder
from chameleon_lora.cli import say
from chameleon_lora.cli.option_types import count
from chameleon_lora.errors import ChameleonError, ConfigError
from chameleon_lora.report.folder import PAGE, try_drawing
from chameleon_lora.report.markup import HOW_TO_DRAW
from chameleon_lora.reproduce.finding import Effort, PaperRow
from chameleon_lora.reproduce.page import write_report
from chameleon_lora.reproduce.report import Report, RowResult, result_lines, table_lines
from chameleon_lora.reproduce.rows import ROWS, Measure, choose_rows, measure_row, run_rows

QUICK = Effort(duration_s=240.0, seeds=(1,))
FULL = Effort(duration_s=600.0, seeds=(1, 2, 3))


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command `reproduce` and its options."""
    parser = subparsers.add_parser(
        "reproduce",
        description=(
            "Simulates what each row of the paper's evaluation compares, prints its figures beside "
            "ours, and writes plots and one HTML page. Needs no GPU and no vLLM."
        ),
    )
    parser.add_argument("rows", nargs="*", metavar="ROW", help="see --list (default: all)")
    parser.add_argument("--list", action="store_true", help="name the rows and run none")
    parser.add_argument(
        "--quick",
        action="store_true",
        help=f"runs of {QUICK.duration_s:.0f} s and one seed "
        f"(default: {FULL.duration_s:.0f} s and {len(FULL.seeds)} seeds)",
    )
    parser.add_argument(
        "--jobs", type=count, default=os.cpu_count() or 1, metavar="N",
        help="rows at a time (default: one a core)",
    )  # fmt: skip
    parser.add_argument(
        "--out", type=Path, default=None, metavar="DIR",
        help="for the files, new or empty (default: runs/reproduce-N)",
    )  # fmt: skip
    parser.set_defaults(run=reproduce_command)


def reproduce_command(args: argparse.Namespace) -> int:
    """Runs the rows asked for and prints what they came to; a claim that fails is no error.

    Returns 0 all ran, 1 a row ended with an error or a file could not be written.

    Raises:
        ConfigError: there is no such row, or the folder is taken.
    """
    if args.list:
        print(listing(ROWS))
        return 0
    rows = choose_rows(ROWS, args.rows)
    out_dir = make_folder(args.out)
    words = ["chameleon reproduce", *(["--quick"] if args.quick else []), *args.rows]
    effort = QUICK if args.quick else FULL
    executor = workers(args.jobs)
    try:
        report = run_report(rows, effort, " ".join(words), executor)
    finally:
        executor.shutdown(cancel_futures=True)
    return finish(report, out_dir)


def workers(count: int) -> Executor:
    """Processes for the rows; Ctrl-C ends them at once, and not after the rows they are at."""
    return ProcessPoolExecutor(
        count,
        # Not forked from this process: its threads would be lost half-way through what they do.
        multiprocessing.get_context("forkserver"),
        initializer=signal.signal,
        initargs=(signal.SIGINT, signal.SIG_DFL),
    )


def make_folder(out: Path | None) -> Path:
    """The folder for the files, there and empty.

    Raises:
        ConfigError: `out` cannot be made, or holds something.
    """
    if out is None:
        return new_folder(Path("runs"), "reproduce")
    try:
        out.mkdir(parents=True, exist_ok=True)
        is_taken = any(out.iterdir())
    except OSError as error:
        raise ConfigError(
            f"{out} cannot be a folder ({error.strerror}); name another --out"
        ) from error
    if is_taken:
        raise ConfigError(f"{out} is not empty and is not overwritten; name another --out")
    return out


def run_report(
    rows: Sequence[PaperRow],
    effort: Effort,
    command: str,
    executor: Executor,
    measure: Measure = measure_row,
) -> Report:
    """All results, each told on stderr as it comes."""
    key_width = max((len(row.key) for row in rows), default=0)
    results: list[RowResult] = []
    for result in run_rows(rows, effort, executor, measure):
        say("\n".join(result_lines(result, key_width, _width())))
        results.append(result)
    return Report(command, effort, tuple(results))


def finish(report: Report, out_dir: Path) -> int:
    """Prints the table and writes the files; the exit code."""
    print("\n".join(table_lines(report, _width())))
    print(f"\n{report.verdicts}; {report.runs}")
    draw = try_drawing()
    try:
        write_report(out_dir, report, draw)
    except (ChameleonError, OSError) as error:
        say(f"chameleon reproduce: {error}")
        return 1
    print(f"page: {out_dir / PAGE}")
    if draw is None:
        print(f"Without plots, because matplotlib is not installed: {HOW_TO_DRAW}")
    return 1 if any(result.finding is None for result in report.results) else 0


def listing(rows: Sequence[PaperRow]) -> str:
    """A line a row: its name, and what it compares."""
    key_width = max((len(row.key) for row in rows), default=0)
    return "\n".join(f"{row.key:<{key_width}}  {row.claim}" for row in rows)


def _width() -> int:
    """Width of the terminal; 100 characters where there is none."""
    return shutil.get_terminal_size((100, 24)).columns
