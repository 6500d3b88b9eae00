"""What the pages of a server say of it: vLLM's gauges, Chameleon's state and arrivals."""

import math
import re
from collections import defaultdict
from collections.abc import Collection, Mapping, Sequence

import msgspec

from chameleon_lora.metrics.record import RESIDENCIES
from chameleon_lora.metrics.sample import LaneSample

_GAUGE = re.compile(
    rb"^vllm:(num_requests_running|num_requests_waiting|kv_cache_usage_perc)"
    rb"(?:\{.*\})? +(\S+)(?: +-?\d+)?\r?$",
    re.MULTILINE,
)


class Gauges(msgspec.Struct, frozen=True):
    """vLLM's own, None where the page has none.

    Attributes:
        running: requests, of all engines together.
        waiting: the same.
        kv_usage: share of the KV cache in use, in [0, 1]; the engines' mean.
    """

    running: int | None
    waiting: int | None
    kv_usage: float | None


def read_gauges(page: bytes) -> Gauges:
    """The gauges of a page in Prometheus' text format; values that are no numbers are left out."""
    found: defaultdict[bytes, list[float]] = defaultdict(list)
    for name, text in _GAUGE.findall(page):
        try:
            value = float(text)
        except ValueError:
            continue
        if math.isfinite(value):
            found[name].append(value)
    running, waiting = found[b"num_requests_running"], found[b"num_requests_waiting"]
    usage = found[b"kv_cache_usage_perc"]
    return Gauges(
        running=round(sum(running)) if running else None,
        waiting=round(sum(waiting)) if waiting else None,
        kv_usage=sum(usage) / len(usage) if usage else None,
    )


class _Tier(msgspec.Struct):
    bytes: int


class _Device(msgspec.Struct):
    held_blocks: int
    block_bytes: int


class StatePage(msgspec.Struct):
    """What GET /chameleon/state tells of lanes and tiers (docs/observability.md)."""

    lanes: tuple[LaneSample, ...]
    tiers: dict[str, _Tier]
    device: _Device

    @property
    def cache_bytes(self) -> dict[str, int]:
        """Bytes of adapters by where they are, fastest first."""
        return {name: self.tiers[name].bytes for name in RESIDENCIES if name in self.tiers}

    @property
    def lent_bytes(self) -> int:
        """Bytes of idle KV memory that adapters hold."""
        return self.device.held_blocks * self.device.block_bytes


class ArrivalsPage(msgspec.Struct):
    """What GET /chameleon/arrivals tells: the engine's request ids and their adapters' tiers."""

    next: int
    arrivals: list[tuple[str, str]]


read_state = msgspec.json.Decoder(StatePage).decode
read_arrivals = msgspec.json.Decoder(ArrivalsPage).decode


def residencies(arrivals: Sequence[tuple[str, str]], ids: Collection[str]) -> Mapping[str, str]:
    """Where the adapter was, by the id that the client was told; the first arrival counts.

    The engine's id is the client's with parts added after dashes: `cmpl-ab` becomes
    `cmpl-ab-0-1f2e3d`. Arrivals of other clients and tiers of no known name are left out.
    """
    found: dict[str, str] = {}
    for engine_id, tier in arrivals:
        if tier not in RESIDENCIES:
            continue
        name = engine_id
        while name and name not in ids:
            name = name.rpartition("-")[0]
        if name:
            found.setdefault(name, tier)
    return found
