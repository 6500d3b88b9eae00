"""`chameleon workload describe`."""

import argparse
import dataclasses
import json
from pathlib import Path

from chameleon_lora.workload.describe import (
    AdapterUse,
    Burstiness,
    TokenSpread,
    TraceSummary,
    describe,
)
from chameleon_lora.workload.trace import MILLISECOND_S, read_trace

_TITLE_WIDTH = 15
_NUMBER_WIDTH = 9


def add_parser(
    subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]",
) -> None:
    """Register `workload`; the chosen command's function is `args.run`."""
    workload = subparsers.add_parser("workload")
    commands = workload.add_subparsers(dest="workload_command", required=True)
    describing = commands.add_parser(
        "describe", help="rate, burstiness, lengths and popularity of a trace"
    )
    describing.add_argument(
        "file",
        type=Path,
        metavar="FILE",
        help="Azure CSV, timed JSONL (Mooncake, timed_trace, with adapters), "
        "or a detailed result of vllm bench serve; may be gzipped",
    )
    describing.add_argument(
        "--timestamp-s",
        type=float,
        default=MILLISECOND_S,
        metavar="S",
        help="unit of a JSONL's timestamps in seconds (default: 0.001)",
    )
    describing.add_argument("--json", action="store_true", help="the same figures as JSON")
    describing.set_defaults(run=describe_command, parser=describing)


def describe_command(args: argparse.Namespace) -> int:
    """Print what `args.file` is like."""
    summary = describe(read_trace(args.file, timestamp_s=args.timestamp_s))
    if args.json:
        print(json.dumps(dataclasses.asdict(summary), indent=2))
    else:
        print("\n".join(_lines(summary)))
    return 0


def _lines(summary: TraceSummary) -> list[str]:
    rate = "none: no time passes" if summary.rate_per_s is None else f"{summary.rate_per_s:.4g}/s"
    return [
        _line("requests", f"{summary.requests:,}"),
        _line("duration", f"{summary.duration_s:,.1f} s ({summary.duration_s / 3600.0:.2f} h)"),
        _line("rate", rate),
        *_burstiness_lines(summary.burstiness),
        _line("", _columns("mean", "P50", "P90", "P95", "P99", "max")),
        _line("input tokens", _spread(summary.input_tokens)),
        _line("output tokens", _spread(summary.output_tokens)),
        *_adapter_lines(summary.adapters),
    ]


def _burstiness_lines(burstiness: Burstiness) -> list[str]:
    gaps = _or_none(burstiness.gap_cv, "CV {:.2f} (Poisson: 1)", "fewer than two, or all of 0 s")
    dispersion = _or_none(
        burstiness.count_dispersion,
        "index of dispersion {:.2f} (Poisson: 1)",
        "fewer than two whole minutes",
    )
    peak = _or_none(burstiness.peak_to_mean, ", peak {:.2f} times the mean", "")
    return [_line("gaps", gaps), _line("per minute", dispersion + peak)]


def _adapter_lines(use: AdapterUse | None) -> list[str]:
    if use is None:
        return [_line("adapters", "none named")]
    alpha = _or_none(use.alpha, "rank^-{:.2f} fits best (maximum likelihood)", "one adapter")
    moved = _or_none(use.drift, "{:.1%} of requests moved between the halves", "one request")
    chance = _or_none(use.drift_by_chance, ", {:.1%} by chance (odd and even requests)", "")
    return [
        _line("adapters", f"{use.count:,}; {use.base_share:.1%} of requests name none"),
        _line("popularity", f"the first has {use.top_share:.1%}; {alpha}"),
        _line("drift", moved + chance),
    ]


def _line(title: str, text: str) -> str:
    return f"{title:<{_TITLE_WIDTH}}{text}"


def _spread(tokens: TokenSpread) -> str:
    return _columns(*(f"{value:,.0f}" for value in dataclasses.astuple(tokens)))


def _columns(*cells: str) -> str:
    return "".join(cell.rjust(_NUMBER_WIDTH) for cell in cells)


def _or_none(value: float | None, form: str, otherwise: str) -> str:
    return otherwise if value is None else form.format(value)
