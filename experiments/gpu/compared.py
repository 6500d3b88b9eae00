"""`chameleon compare` on the served model: what is asked, and the figures of its answer."""

import json
import shlex
from pathlib import Path
from typing import Any

from chameleon_lora.bench.run_folder import SUMMARY
from chameleon_lora.cli.main import main
from chameleon_lora.compare.comparison_file import COMPARISON
from chameleon_lora.errors import BenchError
from experiments.gpu.engines import served_adapters
from experiments.gpu.jobs import serving_flags
from experiments.gpu.outcome import StageResults
from experiments.gpu.scale import RunOptions

ARMS = ("stock", "chameleon")
KEPT_KEYS = (
    "capacity_per_s", "slo_ttft_s", "ratios", "troubles", "stopped", "failed", "machine", "arms",
)  # fmt: skip
BUDGET_S = 1e6  # the stage's own limit ends it
WARM_S = 0.15  # one request to an adapter


def compare(options: RunOptions, results: StageResults) -> None:
    """Stock and Chameleon at shares of stock's capacity; notes what the comparison's file says.

    Raises:
        BenchError: an arm or a request failed, or there is nothing to compare.
    """
    folder = _unused(options.out / "compare", "compare")
    words = _words(options, folder)
    results.add(command=shlex.join(["chameleon", *words]))
    status = main(words)
    found = _read(folder / COMPARISON)
    results.add(**found)
    if status or not found["ratios"]:
        raise BenchError(
            f"chameleon compare ended with {status}: {'; '.join(found['troubles']) or 'see its log'}"
        )


def compare_s(options: RunOptions) -> float:
    """What it should take: servers, one request for each adapter, runs, the probe for the capacity."""
    seconds, serving = options.scale.seconds, options.scale.serving
    runs_s = 1.5 * options.run_s * len(serving.loads)  # half as long again for the last answers
    arm_s = seconds["server"] + WARM_S * serving.adapters + runs_s
    probe_s = seconds["probe"] if options.capacity is None else 0.0
    return options.repeats * len(ARMS) * arm_s + probe_s


def _words(options: RunOptions, folder: Path) -> list[str]:
    serving = options.scale.serving
    model, adapters = served_adapters(options)
    slo_s = options.slo_s or serving.slo_s
    return [
        *("compare", str(model), "--adapters", str(adapters[0].parent)),
        *("--arms", *ARMS, "--load", *map(str, serving.loads)),
        *(() if options.capacity is None else ("--capacity", str(options.capacity))),
        *(() if slo_s is None else ("--slo-ttft", str(slo_s))),
        *serving.lengths,
        *("--duration", str(options.run_s)),
        *("--warmup", str(min(serving.warmup_s, options.run_s / 4))),
        *("--repeats", str(options.repeats), "--budget", str(BUDGET_S)),
        *("--out", str(folder)),
        *serving_flags(options),
    ]


def _read(path: Path) -> dict[str, Any]:
    try:
        fields: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise BenchError(f"the comparison left no {path}: its log says why") from error
    found = {name: fields[name] for name in KEPT_KEYS}
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
