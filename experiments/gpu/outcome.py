"""What a stage has found so far, and how it ended: files, so that the next call knows what is done."""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import Enum
from pathlib import Path
from typing import Any

STAGES = "stages"
FOUND_ENDING, REASON = ".found", "reason"
"""What a stage's process leaves beside its outcome, and what says there why it is not done."""


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


class StageResults:
    """One stage's figures, kept on disk as they come, so that a stage that dies is not mute."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.figures: dict[str, Any] = {}
        path.parent.mkdir(parents=True, exist_ok=True)
        path.unlink(missing_ok=True)

    def add(self, **figures: Any) -> None:
        """Adds them."""
        self.figures.update(figures)
        beside = self.path.with_suffix(".part")
        beside.write_text(json.dumps(self.figures), encoding="utf-8")
        beside.replace(self.path)


def read_results(path: Path) -> dict[str, Any]:
    """What a stage had found when it ended; nothing if it found nothing."""
    try:
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return figures
