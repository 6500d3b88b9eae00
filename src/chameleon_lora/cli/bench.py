"""`chameleon bench`: open-loop traffic for many adapters on a running server, and its figures."""

import argparse
import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TextIO

from chameleon_lora.bench.completion import Endpoint, PromptForm
from chameleon_lora.bench.measuring import BenchResult, BenchRun, measure
from chameleon_lora.bench.printed import (
    beside_lines,
    has_fallen_behind,
    printable,
    result_lines,
    sweep_lines,
)
from chameleon_lora.bench.replay import Progress
from chameleon_lora.bench.run_folder import folder_for
from chameleon_lora.cli.bench_plan import RATE_PER_S, planned
from chameleon_lora.cli.option_types import count, not_negative, positive
from chameleon_lora.cli.traffic import add_traffic_options
from chameleon_lora.metrics.objectives import Objective

DURATION_S, WARMUP_S, PATIENCE_S = 60.0, 5.0, 120.0
TOKEN_IDS = (100, 500)
"""Ids that are words or parts of words in most vocabularies, the smallest ones included."""
TERMINAL_EVERY_S, FILE_EVERY_S = 0.5, 5.0
_CLEARED_LINE = "\r\x1b[2K"


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Adds the command `bench` and its options, by vLLM's names where they mean what they mean there."""
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
    _add_server(parser.add_argument_group("server"))
    _add_run(parser.add_argument_group("run"))
    add_traffic_options(parser)
    _add_output(parser.add_argument_group("output"))
    parser.set_defaults(run=bench_command)


def bench_command(args: argparse.Namespace) -> int:
    """Runs all rates and prints what came out; progress goes to stderr.

    Returns 0 all well, 1 a request failed, the client fell behind or a run was stopped.

    Raises:
        ChameleonError: asked for wrongly, or no server there.
    """
    plan = planned(args)
    out = folder_for(args.out, "bench")
    live = LiveLine(sys.stderr)
    for note in plan.notes:
        live.say(f"chameleon bench: {printable(note)}")
    done: list[BenchResult] = []
    for run in plan.runs:
        folder = out if len(plan.runs) == 1 else out / f"rate-{run.rate_per_s:g}"
        done.append(_measured(run, folder, live, is_json=args.json))
        if done[-1].stopped is not None:
            break
    if len(done) > 1 and not args.json:
        print("\n".join(sweep_lines([measured.result for measured in done])))
    live.say(f"files: {out}")
    return 0 if all(map(_is_well, done)) else 1


def _measured(run: BenchRun, folder: Path, live: "LiveLine", *, is_json: bool) -> BenchResult:
    """Measures one rate into its folder; prints figures to stdout, and why it stopped to stderr."""
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


def _is_well(measured: BenchResult) -> bool:
    """Can the figures be trusted, and did every request succeed, warm-up included?"""
    is_whole = measured.stopped is None and not measured.errors
    return is_whole and not has_fallen_behind(measured.result)


class LiveLine:
    """One line that is kept up to date on a terminal; elsewhere a line whenever something is told.

    Lives as long as the command. Between calls the terminal's cursor is at the end of the line.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._is_terminal = stream.isatty()
        self.every_s = TERMINAL_EVERY_S if self._is_terminal else FILE_EVERY_S

    def progress(self, name: str) -> Callable[[Progress], None]:
        """What a replay called `name` reports to."""
        return lambda at: self._update(f"{name}: {progress_words(at)}")

    def say(self, line: str) -> None:
        """Print a line that later updates leave standing."""
        self.clear()
        print(line, file=self._stream, flush=True)

    def clear(self) -> None:
        """Afterwards nothing of the last update is on the terminal; a file is left as it is."""
        if self._is_terminal:
            print(_CLEARED_LINE, end="", file=self._stream, flush=True)

    def _update(self, line: str) -> None:
        if self._is_terminal:
            print(_CLEARED_LINE + line, end="", file=self._stream, flush=True)
        else:
            print(line, file=self._stream, flush=True)


def progress_words(at: Progress) -> str:
    """Time, requests sent, under way, completed and failed."""
    failed = f", {at.failed} failed" if at.failed else ""
    return (
        f"{at.now_s:.0f} s, {at.sent} of {at.total} sent, "
        f"{at.sent - at.completed - at.failed} open, {at.completed} completed{failed}"
    )


def _add_server(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--base-url", type=_base_url, required=True, metavar="URL",
        help="the server's root, such as http://127.0.0.1:8000",
    )  # fmt: skip
    group.add_argument(
        "--model", metavar="NAME", help="the base model (default: the first the server lists)"
    )
    names = group.add_mutually_exclusive_group()
    names.add_argument(
        "--lora-modules", nargs="+", metavar="NAME",
        help="adapters to ask for, most popular first (default: all the server lists)",
    )  # fmt: skip
    names.add_argument(
        "--adapters", type=Path, metavar="DIR",
        help="ask for those of this folder, by their sub-folders' names",
    )  # fmt: skip
    group.add_argument(
        "--endpoint", choices=[endpoint.value for endpoint in Endpoint],
        default=Endpoint.COMPLETIONS.value, help=f"default: {Endpoint.COMPLETIONS.value}",
    )  # fmt: skip
    group.add_argument(
        "--prompts", choices=[form.value for form in PromptForm],
        default=PromptForm.TOKEN_IDS.value,
        help="token-ids are exactly as long as they say; text is for servers that take no ids "
        "(default: token-ids; chat takes text)",
    )  # fmt: skip
    group.add_argument(
        "--token-ids", type=_token_ids, default=TOKEN_IDS, metavar="LOW:HIGH",
        help="prompts are drawn from these ids, HIGH not included (default: 100:500)",
    )  # fmt: skip
    group.add_argument(
        "--no-ignore-eos", action="store_true",
        help="do not ask for answers of exact length: for servers that refuse vLLM's ignore_eos",
    )  # fmt: skip
    group.add_argument(
        "--api-key", metavar="KEY", help="default: OPENAI_API_KEY of the environment, if set"
    )


def _add_run(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--request-rate", type=positive, nargs="+", metavar="R",
        help="requests a second; several are run one after the other (default: the trace's own "
        f"where its arrivals are replayed, else {RATE_PER_S:g})",
    )  # fmt: skip
    length = group.add_mutually_exclusive_group()
    length.add_argument(
        "--duration", type=positive, default=DURATION_S, metavar="S",
        help=f"requests arrive for so many seconds, warm-up included (default: {DURATION_S:g})",
    )  # fmt: skip
    length.add_argument(
        "--num-prompts", type=count, metavar="N", help="or until N have arrived after the warm-up"
    )
    group.add_argument(
        "--warmup", type=not_negative, default=WARMUP_S, metavar="S",
        help=f"requests that arrive before it are sent and not counted (default: {WARMUP_S:g})",
    )  # fmt: skip
    group.add_argument(
        "--goodput", type=_objective, nargs="+", default=[], metavar="NAME:MS",
        help="what a good request keeps to, such as ttft:500 tpot:50 e2el:9000",
    )  # fmt: skip
    group.add_argument(
        "--slo-ttft", type=positive, metavar="S", help="the same as --goodput ttft, in seconds"
    )
    group.add_argument(
        "--patience", type=positive, default=PATIENCE_S, metavar="S",
        help="what is unanswered so long after the last arrival has failed "
        f"(default: {PATIENCE_S:g})",
    )  # fmt: skip


def _add_output(group: "argparse._ArgumentGroup") -> None:
    group.add_argument(
        "--label", metavar="WORD", help="what reports call this server (default: its address)"
    )
    group.add_argument(
        "--out", type=Path, metavar="DIR", help="for the files (default: runs/bench-N)"
    )
    group.add_argument(
        "--json", action="store_true", help="print each run's summary.json as a line instead"
    )


def _base_url(text: str) -> str:
    """Without a slash at its end, and without the /v1 that OpenAI's clients want there."""
    if not text.startswith(("http://", "https://")):
        raise argparse.ArgumentTypeError(f"is {text!r}; give http://HOST:PORT or https://HOST")
    return text.rstrip("/").removesuffix("/v1")


def _token_ids(text: str) -> tuple[int, int]:
    low, colon, high = text.partition(":")
    if not (colon and low.isdecimal() and high.isdecimal() and int(low) < int(high)):
        raise argparse.ArgumentTypeError(f"is {text!r}; give LOW:HIGH with 0 <= LOW < HIGH")
    return int(low), int(high)


def _objective(text: str) -> tuple[Objective, float]:
    """The name and the limit in seconds of one word of --goodput, which gives milliseconds."""
    name, _, limit = text.partition(":")
    try:
        return Objective(name), positive(limit) / 1e3
    except ValueError as error:
        known = ", ".join(objective.value for objective in Objective)
        raise argparse.ArgumentTypeError(
            f"is {text!r}; give NAME:MS, where NAME is one of {known}"
        ) from error
