"""What a simulated run says: one record a request, gaps between tokens, and counters."""

from dataclasses import dataclass, field
from enum import Enum

from chameleon_lora.workload.requests import TimedRequest


class Found(Enum):
    """Where a request's adapter was when the request was admitted."""

    NONE = "none"  # it names the base model
    IN_USE = "in_use"  # other requests ran with it
    DEVICE = "device"  # idle where it can be used: in device memory, in its slot, or in host memory
    LINK = "link"  # on its way there: the step waited for the rest of the copy
    HOST = (
        "host"  # in host memory: the step waited for the whole copy; used from there, read for it
    )


@dataclass(slots=True)
class SimRecord:
    """One request. Times are seconds since the run began; None for what did not happen.

    Attributes:
        load_s: what the step of its admission waited for its adapter.
        lane: in which it was admitted first.
        returns: how often it went back to its lane, preempted or squashed.
    """

    request: TimedRequest
    admitted_s: float | None = None
    first_s: float | None = None
    end_s: float | None = None
    load_s: float = 0.0
    found: Found = Found.NONE
    lane: int = 0
    returns: int = 0
    failure: str | None = None

    @property
    def index(self) -> int:
        """Position in order of arrival."""
        return self.request.index

    @property
    def adapter(self) -> str | None:
        """The adapter it names; None for the base model."""
        return self.request.adapter

    @property
    def arrival_s(self) -> float:
        """When it arrived."""
        return self.request.arrival_s

    @property
    def ttft_s(self) -> float | None:
        """Time to first token."""
        return None if self.first_s is None else self.first_s - self.request.arrival_s


@dataclass(slots=True)
class SimOutcome:
    """A run.

    Attributes:
        gaps: (seconds between two tokens of a request, how many such gaps), in order of time.
        duration_s: until the last request ended.
        link_busy_s: time in which the host link copied.
        held_block_s: KV blocks that adapters held, times the seconds.
        peak_blocks: KV blocks that requests held at most.
    """

    records: list[SimRecord]
    gaps: list[tuple[float, int]] = field(default_factory=list)
    duration_s: float = 0.0
    steps: int = 0
    preemptions: int = 0
    squashes: int = 0
    link_busy_s: float = 0.0
    link_bytes: int = 0
    promotions: int = 0
    held_block_s: float = 0.0
    used_block_s: float = 0.0
    peak_blocks: int = 0
    kv_blocks: int = 0
