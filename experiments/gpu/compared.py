"""`chameleon compare` on the served model: what is asked, and the figures of its answer."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chameleon_lora.bench.run_folder import SUMMARY
from chameleon_lora.cli.main import main
from chameleon_lora.compare.comparison_file import COMPARISON
from chameleon_lora.errors import BenchError
from experiments.gpu.engines import served_adapters
from experiments.gpu.jobs import serving_flags
from experiments.gpu.outcome import StageResults, read_outcome
from experiments.gpu.scale import RunOptions

FIRST = "compare"
KEPT_KEYS = ("ratios", "sustained", "cliff", "troubles", "stopped", "failed", "machine", "arms")
HIGHEST_LOAD = 1.05
BUDGET_S = 1e6  # the stage's own limit ends it
AT_SLO = "slo"
SEARCHED_RUNS = 6
"""That a search for the highest load takes, about."""


def compare_loads(options: RunOptions, results: StageResults) -> None:
    """Stock and Chameleon at shares of stock's capacity, which is measured first."""
    loads = [str(load) for load in options.scale.serving.loads]
    _compare(options, results, FIRST, ["--arms", "stock", "chameleon", "--load", *loads])


def compare_policies(options: RunOptions, results: StageResults) -> None:
    """Stock, other policies, halves of Chameleon and stock with other slots, at the highest load."""
    serving = options.scale.serving
    others = [
        word
        for slots in serving.other_slots
        for word in ("--arm", f"stock-{slots}-slots=stock --max-loras {slots}")
    ]
    arms = ["--arms", "stock", *serving.policies, *others]
    _compare(options, results, "policies", [*arms, "--load", f"{HIGHEST_LOAD}"])


def compare_limits(options: RunOptions, results: StageResults) -> None:
    """Stock and Chameleon: the highest load that meets the objective, and the cliff."""
    cliff = [str(ratio) for ratio in options.scale.serving.cliff]
    arms = ["--arms", "stock", "chameleon", "--load"]
    _compare(options, results, "limits", [*arms, "--cliff", *cliff, "--throughput-at-slo"])


def seconds_of(options: RunOptions, arms: int, runs: int, *, probes: bool) -> float:
    """What such a comparison should take: servers, one request for each adapter, runs, probes."""
    seconds, serving = options.scale.seconds, options.scale.serving
    drain_s = options.run_s / 2.0
    warm_s = 0.15 * serving.adapters
    each_s = seconds["server"] + warm_s + runs * (options.run_s + drain_s)
    probe_s = seconds["probe"] if probes and options.capacity is None else 0.0
    if probes and options.capacity == AT_SLO:
        probe_s = seconds["probe"] + SEARCHED_RUNS * (options.run_s + drain_s)
    return options.repeats * arms * each_s + probe_s


def known_load(options: RunOptions) -> tuple[str | float | None, float | None]:
    """Stock's capacity and the objective, as the first comparison found them or as given."""
    first = read_outcome(options.out, FIRST)
    figures = first.figures if first else {}
    return (
        figures.get("capacity_per_s") or options.capacity,
        figures.get("slo_ttft_s") or options.slo_s or options.scale.serving.slo_s,
    )


def _compare(options: RunOptions, results: StageResults, name: str, words: Sequence[str]) -> None:
    """Runs it and notes what its file says.

    Raises:
        BenchError: an arm or a request failed, or there is nothing to compare.
    """
    serving = options.scale.serving
    model, adapters = served_adapters(options)
    folder = _unused(options.out / "compare", name)
    capacity, slo_s = known_load(options)
    known = [
        *(() if capacity is None else ("--capacity", str(capacity))),
        *(() if slo_s is None else ("--slo-ttft", str(slo_s))),
    ]
    status = main(
        [
            *("compare", str(model), "--adapters", str(adapters[0].parent)),
            *words,
            *known,
            *serving.lengths,
            *(
                "--duration",
                str(options.run_s),
                "--warmup",
                str(min(serving.warmup_s, options.run_s / 4)),
            ),
            *("--repeats", str(options.repeats), "--budget", str(BUDGET_S)),
            *("--out", str(folder)),
            *serving_flags(options),
        ]
    )
    found = _read(folder / COMPARISON)
    results.add(**found)
    if status or not (found["ratios"] or found["sustained"]):
        raise BenchError(
            f"chameleon compare ended with {status}: {'; '.join(found['troubles']) or 'see its log'}"
        )


def _read(path: Path) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"the comparison left no {path}: its log says why") from error
    found = {name: fields[name] for name in ("capacity_per_s", "slo_ttft_s", *KEPT_KEYS)}
    return {**found, "folder": str(path.parent), "late_runs": _late_runs(path.parent)}


def _late_runs(folder: Path) -> list[str]:
    """The runs whose client fell behind: their figures are not the server's alone."""
    return [
        f"{run.parent.name}/{run.name}"
        for run in sorted(path.parent for path in folder.glob(f"*/*/{SUMMARY}"))
        if (lateness := json.loads((run / SUMMARY).read_text(encoding="utf-8"))["lateness"])
        and lateness["has_fallen_behind"]
    ]


def _unused(parent: Path, name: str) -> Path:
    """A folder that is not there yet: an earlier try may have left its own."""
    parent.mkdir(parents=True, exist_ok=True)
    number = 1
    while (folder := parent / f"{name}-{number}").exists():
        number += 1
    return folder
