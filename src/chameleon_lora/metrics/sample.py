"""What a server said of itself at one moment of a run."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class LaneSample:
    """One lane.

    Attributes:
        held: why its head waited, as docs/observability.md names it; None if it did not.
    """

    lane: int
    waiting: int
    loading: int
    running: int
    used_tokens: int
    quota_tokens: int
    held: str | None


@dataclass(frozen=True, slots=True)
class Sample:
    """One look at a server. None where it does not tell.

    Attributes:
        at_s: seconds since the run began.
        kv_usage: share of the KV cache that requests use, in [0, 1].
        lanes: empty for servers without lanes.
        cache_bytes: bytes of adapters by where they are (`RESIDENCIES`).
        lent_bytes: of idle KV memory that adapters hold.
    """

    at_s: float
    running: int | None
    waiting: int | None
    kv_usage: float | None
    lanes: tuple[LaneSample, ...] = ()
    cache_bytes: dict[str, int] | None = None
    lent_bytes: int | None = None
