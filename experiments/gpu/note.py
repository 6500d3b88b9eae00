"""What a stage has found so far: kept on disk as it comes, so that a stage that dies is not mute."""

import json
from pathlib import Path
from typing import Any


class Note:
    """One stage's figures; `figures` may be added to, and `keep` puts them on disk."""

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


def noted(path: Path) -> dict[str, Any]:
    """What a stage had found when it ended; nothing if it found nothing."""
    try:
        figures: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return figures
