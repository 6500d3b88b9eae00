"""Which lanes there are and what each may hold, from what was seen lately (PAPER §4.3.2-3)."""

import math
from collections import deque
from dataclasses import dataclass, field, replace

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.queues.clusters import ClusterSettings, cutoffs, lane_of
from chameleon_lora.policy.queues.quota import LaneLoad, Quota, lane_quotas

UNBOUNDED = Quota(tokens=1 << 60, seats=1 << 30)
CLUSTERED = 256  # sizes that go into one clustering; more would stall the step that computes it


@dataclass(frozen=True, slots=True)
class LaneSettings:
    """When and how lanes are cut.

    Attributes:
        period_s: time between two cuts (the paper's five minutes).
        first_after: requests seen before the first cut; it is repeated at each doubling until one
            period has passed, for a short memory is a poor guide (ADR 0010).
        is_static: lanes are cut once, after `first_after` requests, and never again.
        has_quotas: False lets every lane use the whole engine (for baselines with one lane).
        slo_s: time in which a request should be through its lane's queue and service.
    """

    cluster: ClusterSettings = field(default_factory=ClusterSettings)
    period_s: float = 300.0
    first_after: int = 64
    is_static: bool = False
    has_quotas: bool = True
    slo_s: float = 5.0

    def __post_init__(self) -> None:
        for name in ("period_s", "slo_s"):
            if getattr(self, name) <= 0:
                raise ConfigError(
                    f"lanes.{name} is {getattr(self, name)}; use a time above 0 seconds"
                )
        if self.first_after < 2:
            raise ConfigError(f"lanes.first_after is {self.first_after}; use 2 or more")


@dataclass(frozen=True, slots=True)
class LaneCut:
    """The lanes until the next cut: cut-offs between them, ascending, and each lane's quota."""

    cutoffs: tuple[float, ...]
    quotas: tuple[Quota, ...]


class Calibration:
    """Remembers recent arrivals and ends, and cuts lanes from them. Owner: the scheduler."""

    def __init__(self, settings: LaneSettings, total: Quota) -> None:
        self._settings = settings
        self._total = total if settings.has_quotas else UNBOUNDED
        # A lane without a seat admits nobody.
        most = min(settings.cluster.max_lanes, self._total.seats)
        self._cluster = replace(settings.cluster, max_lanes=most)
        self._arrivals: deque[tuple[float, float, int]] = deque(maxlen=4 * CLUSTERED)
        self._durations: deque[tuple[float, float]] = deque(maxlen=4 * CLUSTERED)
        self._seen = 0
        self._next_count: float = settings.first_after
        self._next_s: float | None = None
        self.cut = LaneCut((), (self._total,))

    def arrived(self, size: float, cost_tokens: int, now_s: float) -> int:
        """Remember one arrival and answer its lane."""
        self._seen += 1
        self._arrivals.append((now_s, size, cost_tokens))
        if self._next_s is None:
            period_s = math.inf if self._settings.is_static else self._settings.period_s
            self._next_s = now_s + period_s
        return lane_of(size, self.cut.cutoffs)

    def finished(self, size: float, duration_s: float) -> None:
        """Remember how long one request ran."""
        self._durations.append((size, duration_s))

    def is_due(self, now_s: float) -> bool:
        """True when the lanes are to be cut anew."""
        if self._next_s is None or self._cluster.max_lanes == 1:
            return False
        return now_s >= self._next_s or self._seen >= self._next_count

    def recut(self, now_s: float) -> LaneCut:
        """Cut lanes from the last arrivals. Takes milliseconds; a driver calls it once a period."""
        if self._settings.is_static:
            self._next_count = math.inf
        elif self._next_s is not None and now_s >= self._next_s:
            self._next_s = now_s + self._settings.period_s
            self._next_count = math.inf
        else:
            self._next_count = 2 * self._seen
        arrivals = list(self._arrivals)
        step = -(-len(arrivals) // CLUSTERED)
        edges = cutoffs([size for _, size, _ in arrivals[::step]], self._cluster)
        loads = [self._load(lane, edges, now_s) for lane in range(len(edges) + 1)]
        self.cut = LaneCut(edges, self._quotas(loads))
        return self.cut

    def _quotas(self, loads: list[LaneLoad]) -> tuple[Quota, ...]:
        if self._total is UNBOUNDED:
            return (UNBOUNDED,) * len(loads)
        return lane_quotas(self._total, loads, self._settings.slo_s)

    def _load(self, lane: int, edges: tuple[float, ...], now_s: float) -> LaneLoad:
        """What one lane saw: largest request, mean duration, arrival rate over the remembered span."""
        tokens = [cost for _, size, cost in self._arrivals if lane_of(size, edges) == lane]
        times = [t for size, t in self._durations if lane_of(size, edges) == lane]
        every = [t for _, t in self._durations]
        mean_s = sum(times or every) / len(times or every) if every else self._settings.slo_s
        span_s = max(now_s - self._arrivals[0][0], 1e-3)
        return LaneLoad(max(tokens, default=1), mean_s, len(tokens) / span_s)
