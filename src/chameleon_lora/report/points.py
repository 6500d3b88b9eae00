"""Runs grouped by the load they were measured at."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from chameleon_lora.bench.run_folder import Purpose
from chameleon_lora.report.reading import Evidence
from chameleon_lora.report.run import RecordedRun

DIGITS = 4  # rates of the same load may differ in their last digits


class AxisScale(Enum):
    """What the numbers of a load count."""

    CAPACITY = "load, % of the base's capacity"
    RATE = "requests/s"
    NONE = "no load is known"


@dataclass(frozen=True, slots=True)
class Points:
    """Runs grouped by load.

    Attributes:
        runs: by load, lowest first; one group where loads are not known. Never without a group, no
            group without a run.
    """

    scale: AxisScale
    runs: tuple[tuple[float, tuple[RecordedRun, ...]], ...]

    @property
    def highest(self) -> tuple[float, tuple[RecordedRun, ...]]:
        """The last group: the highest load, and every arm's runs at it."""
        return self.runs[-1]

    def name(self, load: float) -> str:
        """A load with its unit, for headings: `70 % of capacity`, `5 requests/s`."""
        match self.scale:
            case AxisScale.CAPACITY:
                return f"{load:g} % of capacity"
            case AxisScale.RATE:
                return f"{load:g} requests/s"
            case AxisScale.NONE:
                return "all runs"
            case _:
                assert_never(self.scale)


def load_points(evidence: Evidence) -> Points | None:
    """The points of runs made at a load, neither to search nor for the cliff; None if there are none."""
    runs = [run for run in evidence.runs if run.purpose in (Purpose.RUN, Purpose.LOAD)]
    return _points(runs)


def search_points(evidence: Evidence) -> Points | None:
    """The points of runs made to find the highest rate; None if there are none."""
    runs = [run for run in evidence.runs if run.purpose is Purpose.SEARCH]
    return _points([run for run in runs if run.rate_per_s is not None], has_rates_only=True)


def of_arm(runs: Sequence[RecordedRun], label: str) -> tuple[RecordedRun, ...]:
    """The runs with this arm's label, by repeat and then folder, so that their order is fixed."""
    return tuple(
        sorted(
            (run for run in runs if run.label == label), key=lambda run: (run.repeat, run.folder)
        )
    )


def _points(runs: Sequence[RecordedRun], *, has_rates_only: bool = False) -> Points | None:
    if not runs:
        return None
    scale = _scale(runs, has_rates_only=has_rates_only)
    groups: defaultdict[float, list[RecordedRun]] = defaultdict(list)
    for run in runs:
        groups[_load(run, scale)].append(run)
    return Points(scale, tuple((load, tuple(groups[load])) for load in sorted(groups)))


def _scale(runs: Sequence[RecordedRun], *, has_rates_only: bool) -> AxisScale:
    if not has_rates_only and all(run.load is not None for run in runs):
        return AxisScale.CAPACITY
    return AxisScale.RATE if all(run.rate_per_s is not None for run in runs) else AxisScale.NONE


def _load(run: RecordedRun, scale: AxisScale) -> float:
    match scale:
        case AxisScale.CAPACITY:
            return _rounded(100.0 * (run.load or 0.0))
        case AxisScale.RATE:
            return _rounded(run.rate_per_s or 0.0)
        case AxisScale.NONE:
            return 0.0
        case _:
            assert_never(scale)


def _rounded(value: float) -> float:
    return float(f"{value:.{DIGITS}g}")
