"""What `chameleon compare` found, as its comparison.json says."""

import json
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from chameleon_lora.errors import BenchError

COMPARISON = "comparison.json"


@dataclass(frozen=True, slots=True)
class Arm:
    """One configuration.

    Attributes:
        command: of its server.
        differs: in what it differs from the base; empty for the base itself.
    """

    label: str
    command: str
    differs: tuple[str, ...]


@dataclass(frozen=True, slots=True)
class Ratio:
    """A figure of an arm over the base's, run by run of the same requests.

    Attributes:
        figure: `ttft_p99` and its like.
        point: the load.
        base, value: medians.
        ratio: the median of the ratios pair by pair.
        low, high: its bootstrap interval; None if there were too few pairs.
    """

    label: str
    figure: str
    point: float
    base: float | None
    value: float | None
    ratio: float | None
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True, slots=True)
class Sustained:
    """The highest rate at which an arm met the objective; the ratio is to the base's."""

    label: str
    rate_per_s: float | None
    ratio: float | None
    low: float | None
    high: float | None
    pairs: int


@dataclass(frozen=True, slots=True)
class CliffPoint:
    """Median time to first token where so many adapters were active for each slot."""

    label: str
    active_over_slots: float
    ttft_p50_s: float


@dataclass(frozen=True, slots=True)
class Comparison:
    """Attributes:
    stopped: why there were no more repeats.
    capacity_per_s: of the base, requests per second.
    troubles: what went wrong with an arm in a repeat.
    """

    base: str
    command: str
    machine: str
    capacity_per_s: float | None
    slo_s: float | None
    stopped: str
    arms: tuple[Arm, ...]
    ratios: tuple[Ratio, ...]
    sustained: tuple[Sustained, ...]
    cliff: tuple[CliffPoint, ...]
    troubles: tuple[str, ...]


def read_comparison(path: Path) -> Comparison:
    """Raises:
    BenchError: the file is none; the message names it.
    """
    try:
        return _comparison(json.loads(path.read_text(encoding="utf8")))
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise BenchError(
            f"{path} is no comparison ({type(error).__name__}: {error}); run the comparison again"
        ) from error


def _comparison(fields: dict[str, Any]) -> Comparison:
    return Comparison(
        base=str(fields["base"]),
        command=str(fields.get("command") or ""),
        machine=str(fields.get("machine") or ""),
        capacity_per_s=number(fields.get("capacity_per_s")),
        slo_s=number(fields.get("slo_ttft_s")),
        stopped=str(fields.get("stopped") or ""),
        arms=tuple(_arm(arm) for arm in fields.get("arms") or ()),
        ratios=tuple(
            Ratio(
                label=str(ratio["label"]),
                figure=str(ratio["figure"]),
                point=float(ratio["point"]),
                base=number(ratio.get("base")),
                value=number(ratio.get("value")),
                ratio=number(ratio.get("ratio")),
                low=number(ratio.get("low")),
                high=number(ratio.get("high")),
                pairs=int(ratio.get("pairs") or 0),
            )
            for ratio in fields.get("ratios") or ()
        ),
        sustained=tuple(
            Sustained(
                label=str(found["label"]),
                rate_per_s=number(found.get("rate_per_s")),
                ratio=number(found.get("ratio")),
                low=number(found.get("low")),
                high=number(found.get("high")),
                pairs=int(found.get("pairs") or 0),
            )
            for found in fields.get("sustained") or ()
        ),
        cliff=tuple(
            CliffPoint(
                label=str(point["label"]),
                active_over_slots=float(point["active_over_slots"]),
                ttft_p50_s=float(point["ttft_p50_s"]),
            )
            for point in fields.get("cliff") or ()
            if point.get("ttft_p50_s") is not None
        ),
        troubles=tuple(map(str, fields.get("troubles") or ())),
    )


def _arm(fields: dict[str, Any]) -> Arm:
    return Arm(
        label=str(fields["label"]),
        command=command_line(fields.get("command")),
        differs=tuple(map(str, fields.get("differs") or ())),
    )


def command_line(command: object) -> str:
    """Words as one line; what is one line already stays."""
    return shlex.join(map(str, command)) if isinstance(command, list) else str(command or "")


def number(value: object) -> float | None:
    """None for what is none.

    Raises:
        ValueError, TypeError: `value` is something else than a number.
    """
    return None if value is None else float(value)  # type: ignore[arg-type]  # what is no number is refused by float
