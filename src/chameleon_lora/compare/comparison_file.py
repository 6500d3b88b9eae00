"""comparison.json: what `chameleon compare` writes and `chameleon report` reads."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path

import msgspec

from chameleon_lora.errors import BenchError

COMPARISON = "comparison.json"


@dataclass(frozen=True, slots=True)
class Figure:
    """What arms are compared by: its name in files, and what people read."""

    name: str
    text: str
    is_in_seconds: bool = False
    is_more_better: bool = False


FIGURES = (
    Figure("ttft_p50", "P50 time to first token", is_in_seconds=True),
    Figure("ttft_p99", "P99 time to first token", is_in_seconds=True),
    Figure("itl_p99", "P99 time between tokens", is_in_seconds=True),
    Figure("output_throughput", "output tokens/s", is_more_better=True),
    Figure("fairness", "worst P99 over median P99"),
)


@dataclass(frozen=True, slots=True)
class ComparedArm:
    """One server.

    Attributes:
        command: with `{port}` for its port.
        differs: in what it is unlike the base; empty for the base itself.
    """

    label: str
    command: tuple[str, ...]
    differs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """An arm's figure at a point, over the base's.

    Attributes:
        base, value: medians over repeats, of the base and of the arm; seconds or tokens/s.
        ratio: the median of paired ratios, within [low, high] at 95 %; None for one pair of figures.
    """

    label: str
    figure: str
    point: float
    base: float
    value: float
    ratio: float
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True, slots=True)
class Sustained:
    """The highest load of an arm that met the objective: medians over repeats; the base has no ratio."""

    label: str
    rate_per_s: float
    ratio: float | None
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True, slots=True)
class CliffPoint:
    """Median time to first token, over repeats, where so many adapters were active for each slot."""

    label: str
    active_over_slots: float
    ttft_p50_s: float


@dataclass(frozen=True, slots=True)
class ComparisonFile:
    """What a comparison has found, field by field in the file's order.

    Attributes:
        base: the label of the arm that the ratios are to.
        command: makes it again.
        figures: what the names of figures mean.
        capacity_per_s: of the base, requests per second.
        stopped: why there were no more repeats.
        failed: requests of all arms without a whole answer.
        troubles: what went wrong with an arm in a repeat.
        slo_ttft_s: most that P99 time to first token may be.
    """

    base: str
    command: str
    machine: str
    arms: tuple[ComparedArm, ...]
    figures: Mapping[str, str]
    capacity_per_s: float
    stopped: str
    ratios: tuple[Ratio, ...]
    sustained: tuple[Sustained, ...]
    failed: int
    troubles: tuple[str, ...]
    slo_ttft_s: float
    cliff: tuple[CliffPoint, ...]


def write_comparison(path: Path, comparison: ComparisonFile) -> None:
    """Writes over a former one."""
    path.write_text(json.dumps(asdict(comparison), indent=1) + "\n", encoding="utf-8")


def read_comparison(path: Path) -> ComparisonFile:
    """The comparison that a file holds.

    Raises:
        BenchError: the file is none; the message names it, and the field that is wrong.
    """
    try:
        # json and not msgspec takes the file in, for a ratio may be NaN.
        return msgspec.convert(json.loads(path.read_text(encoding="utf-8")), ComparisonFile)
    except (OSError, ValueError) as error:
        raise BenchError(f"{path} is no comparison ({error}); run the comparison again") from error
