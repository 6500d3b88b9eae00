"""What a server's observer wrote: adapters read from disk, and engine steps that waited."""

import json
from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.errors import BenchError


@dataclass(frozen=True, slots=True)
class Observations:
    """Counts of one run.

    Attributes:
        cold_loads: adapters read from disk.
        activations: adapters copied from host memory into a slot.
        stalled_s: time that engine steps spent on either, while their requests waited.
    """

    cold_loads: int
    activations: int
    stalled_s: float


def bytes_so_far(path: Path) -> int:
    """How much the observer has written; pass it on to count only what comes later."""
    return path.stat().st_size if path.exists() else 0


def read_observations(path: Path, skip_bytes: int = 0) -> Observations | None:
    """The counts after the first `skip_bytes` bytes; None if the server had no observer.

    A last line without its end is left out: a server that is killed may write half of it.

    Raises:
        BenchError: a line is not an observation; the message names it.
    """
    if not path.exists():
        return None
    cold_loads = activations = 0
    stalled_s = 0.0
    text = path.read_bytes()[skip_bytes:].decode("utf8")
    for line in text[: text.rfind("\n") + 1].splitlines():
        try:
            event = json.loads(line)
            cold_loads += event["event"] == "disk_load"
            activations += event["event"] == "activate"
            stalled_s += event["seconds"] if event["in_step"] else 0.0
        except (ValueError, KeyError, TypeError) as error:
            raise BenchError(f"{path} holds {line!r}, which is no observation ({error})") from error
    return Observations(cold_loads, activations, stalled_s)
