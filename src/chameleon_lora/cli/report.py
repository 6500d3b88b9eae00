"""`chameleon report`: runs as one page that explains itself."""

import argparse
import shlex
from pathlib import Path

from chameleon_lora.bench.run_folder import new_folder
from chameleon_lora.cli import say
from chameleon_lora.report.folder import place_of, try_drawing, write_page
from chameleon_lora.report.markup import HOW_TO_DRAW
from chameleon_lora.report.reading import read_evidence
from chameleon_lora.report.report import report_page


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command `report` and its options."""
    parser = subparsers.add_parser(
        "report",
        description=(
            "Makes one HTML page of the runs of `chameleon bench`, `chameleon compare` and "
            "`chameleon demo`. The page needs no network and no other file."
        ),
    )
    parser.add_argument(
        "runs", nargs="+", type=Path, metavar="RUN", help="a run's folder, or one that holds some"
    )
    parser.add_argument(
        "--out", type=Path, default=None, metavar="FILE_OR_DIR",
        help="FILE.html: the page alone; DIR: page, and plots as PNG and SVG "
        "(default: runs/report-N)",
    )  # fmt: skip
    parser.add_argument(
        "--markdown",
        action="store_true",
        help="write report.md beside the page, for README or chat",
    )
    parser.set_defaults(run=report_command)


def report_command(args: argparse.Namespace) -> int:
    """Writes the report and says where it is.

    Returns 0 done, 1 done without some run that is broken.

    Raises:
        ChameleonError: there is nothing to report, or no place for it.
    """
    evidence = read_evidence(args.runs)
    out = new_folder(Path("runs"), "report") if args.out is None else args.out
    draw = try_drawing()
    page = report_page(evidence, _command(args.runs, out, has_table=args.markdown))
    place = place_of(out)
    write_page(place, page, draw, has_table=args.markdown)
    for text in page.warnings:
        say(f"chameleon report: {text}")
    if draw is None:
        print(f"Without plots, because matplotlib is not installed: {HOW_TO_DRAW}")
    print(f"page: {place.page}")
    return 1 if evidence.skipped else 0


def _command(runs: list[Path], out: Path, *, has_table: bool) -> str:
    words = ["chameleon", "report", *map(str, runs), "--out", str(out)]
    return shlex.join([*words, *(["--markdown"] if has_table else [])])
