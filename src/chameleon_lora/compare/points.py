"""What one server of a comparison is asked to show: runs, each at one rate."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from chameleon_lora.bench.run_folder import Purpose
from chameleon_lora.workload.named_adapters import NamedAdapter
from chameleon_lora.workload.requests import TimedRequest

RequestsOf = Callable[[float, float, Sequence[NamedAdapter | str], int], tuple[TimedRequest, ...]]
"""The requests at a rate per second, for so many seconds, over these adapters, from a seed; another
rate sends the same requests at other times."""


@dataclass(frozen=True, slots=True)
class Point:
    """One run.

    Attributes:
        value: the share of capacity, the rate, or adapters over slots.
        active_adapters: how many of the adapters are asked for, the most popular ones.
        share: of the base arm's capacity.
    """

    purpose: Purpose
    value: float
    rate_per_s: float
    active_adapters: int
    share: float

    @property
    def name(self) -> str:
        """Names the run's folder: what it is for and at which value, to four digits."""
        return f"{self.purpose.value}-{self.value:.4g}"


@dataclass(frozen=True, slots=True)
class LoadPoints:
    """The points that every arm goes through, at a capacity known by then.

    Attributes:
        loads: shares of the capacity.
        cliff: adapters for each slot, at `cliff_load` of the capacity.
        slots: max_loras, which the cliff counts in.
    """

    adapters: int
    slots: int
    loads: tuple[float, ...] = ()
    cliff: tuple[float, ...] = ()
    cliff_load: float = 0.7

    def points(self, capacity_per_s: float) -> tuple[Point, ...]:
        """In the order in which they are run."""
        loads = [self.at(Purpose.LOAD, load, capacity_per_s, load) for load in self.loads]
        cliff = [
            Point(
                Purpose.CLIFF,
                ratio,
                self.cliff_load * capacity_per_s,
                min(self.adapters, max(1, round(ratio * self.slots))),
                self.cliff_load,
            )
            for ratio in self.cliff
        ]
        return (*loads, *cliff)

    def at(self, purpose: Purpose, value: float, capacity_per_s: float, share: float) -> Point:
        """A point at a share of the capacity, over all adapters."""
        return Point(purpose, value, share * capacity_per_s, self.adapters, share)


@dataclass(frozen=True, slots=True)
class TrafficSpec:
    """What is sent at every point.

    Attributes:
        adapters: most popular first.
        token_ids: half-open range of the ids that prompts are drawn from.
        described: the workload, as config.json tells it.
    """

    requests_of: RequestsOf
    adapters: tuple[NamedAdapter | str, ...]
    token_ids: tuple[int, int]
    duration_s: float
    warmup_s: float
    seed: int
    described: Mapping[str, object]

    def requests(self, point: Point, repeat: int) -> tuple[TimedRequest, ...]:
        """What each arm is sent in one repeat at one point; another repeat has others."""
        active = self.adapters[: point.active_adapters]
        return self.requests_of(point.rate_per_s, self.duration_s, active, self.seed + repeat)
