"""How a stage ended, kept as a file of its own, so that the next call knows what is done."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

from chameleon_lora.errors import BenchError

STAGES = "stages"
NOTE, REASON = ".note", ".reason"
"""Endings of the files that a stage's process leaves beside its outcome."""


FAILED_CODE, NOT_HERE_CODE = 1, 2
"""How the process of a stage ends if it is not done."""


class NotHereError(BenchError):
    """This machine lacks what the stage needs."""


class Status(Enum):
    """How it ended."""

    DONE = "done"
    FAILED = "failed"
    SKIPPED = "skipped"  # it cannot be run here
    LEFT = "left out"  # not in this call


@dataclass(frozen=True, slots=True)
class Outcome:
    """One stage's.

    Attributes:
        reason: why it is not done; "" if it is.
        seconds: that it took.
        figures: what it found; of a failed stage, up to there.
        device: what it ran on.
    """

    stage: str
    status: Status
    reason: str = ""
    seconds: float = 0.0
    figures: Mapping[str, Any] = field(default_factory=dict)
    device: str = ""


def write_outcome(out: Path, outcome: Outcome) -> None:
    """Leaves the stage's file, whole or not at all."""
    path = place_of(out, outcome.stage)
    path.parent.mkdir(parents=True, exist_ok=True)
    fields = {**asdict(outcome), "status": outcome.status.value}
    beside = path.with_suffix(".part")
    beside.write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


def read_outcome(out: Path, stage: str) -> Outcome | None:
    """What is known of the stage; None if it never ran, or its file is not whole."""
    try:
        fields = json.loads(place_of(out, stage).read_text(encoding="utf-8"))
        return Outcome(**{**fields, "status": Status(fields["status"])})
    except (OSError, ValueError, KeyError, TypeError):
        return None


def place_of(out: Path, stage: str) -> Path:
    """The stage's file."""
    return out / STAGES / f"{stage}.json"
