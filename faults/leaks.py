"""Does a server grow? Its memory, descriptors, threads and KV memory at moments when it is idle."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import psutil
from scipy.stats import theilslopes

from chameleon_lora.errors import ConfigError

LEAST_SAMPLES = 8
HOUR_S = 3600.0


@dataclass(frozen=True, slots=True)
class LeakSample:
    """A server with all its children, while no request was under way.

    Attributes:
        at_s: since the first sample.
        rss_bytes: of all of them.
        kv_usage: share of the KV cache that is not free, in [0, 1].
        series: lines on the metrics page.
        rss_by_process: by their titles.
    """

    at_s: float
    rss_bytes: int
    descriptors: int
    threads: int
    kv_usage: float
    series: int
    rss_by_process: Mapping[str, int]


@dataclass(frozen=True, slots=True)
class Slope:
    """How fast something grows, a unit an hour, with its 95 % interval (Theil and Sen's)."""

    per_hour: float
    low: float
    high: float

    @property
    def is_growth(self) -> bool:
        """Whether the interval lies above zero."""
        return self.low > 0.0


def sample(process: psutil.Process, at_s: float, kv_usage: float, series: int) -> LeakSample:
    """What the process and its children hold now."""
    family = [process, *process.children(recursive=True)]
    rss_by_process = {_title(member): member.memory_info().rss for member in family}
    return LeakSample(
        at_s,
        sum(rss_by_process.values()),
        sum(member.num_fds() for member in family),
        sum(member.num_threads() for member in family),
        kv_usage,
        series,
        rss_by_process,
    )


def _title(process: psutil.Process) -> str:
    """What is unlike for each: vLLM gives its processes titles; others have numbers."""
    title = " ".join(process.cmdline()[:1])  # none of one that has just ended
    return title if title.startswith("VLLM::") else f"{process.name()} {process.pid}"


def slope(at_s: Sequence[float], values: Sequence[float]) -> Slope:
    """The growth of values over time: the median of all pairs' slopes, which no single jump moves.

    Raises:
        ConfigError: there are too few of them.
    """
    count = len(values)
    if count < LEAST_SAMPLES:
        raise ConfigError(
            f"{count} samples are too few to tell growth from noise, the least are {LEAST_SAMPLES}"
        )
    found = theilslopes(values, at_s)
    return Slope(
        float(found.slope) * HOUR_S,
        float(found.low_slope) * HOUR_S,
        float(found.high_slope) * HOUR_S,
    )
