"""What happened to adapters in one engine, counted since its start.

Kept in the engine process and read by API servers as plain dicts, so that none of them has numbers
of its own and several of them tell the same.
"""

from bisect import bisect_left
from collections import deque
from collections.abc import Iterable, Sequence
from itertools import islice
from typing import Any, Literal

from chameleon_lora.engine_vllm.event_log import EventLog
from chameleon_lora.engine_vllm.messages import Activated, HistogramCounts
from chameleon_lora.policy.plan import Activation
from chameleon_lora.policy.request import AdapterId, RequestId
from chameleon_lora.policy.view import Place

Source = Literal["device", "host", "disk"]
SOURCES: tuple[Source, ...] = ("device", "host", "disk")
LOAD_BOUNDS_S = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0)
STALL_BOUNDS_S = (0.0001, 0.00025, 0.0005, *LOAD_BOUNDS_S[:11])
WAIT_BOUNDS_S = (0.0, *LOAD_BOUNDS_S)  # the first one counts those that did not wait at all


class Histogram:
    """Values counted in fixed buckets. Invariant: the counts add up to the number of values."""

    def __init__(self, bounds: Sequence[float]) -> None:
        self._bounds = tuple(bounds)
        self._counts = [0] * (len(self._bounds) + 1)
        self._sum = 0.0

    def observe(self, value: float) -> None:
        """Adds to the first bucket whose bound is not below it, and to the sum."""
        self._counts[bisect_left(self._bounds, value)] += 1
        self._sum += value

    def counts(self) -> HistogramCounts:
        """A copy that can be sent."""
        return {"bounds": list(self._bounds), "counts": list(self._counts), "sum": self._sum}


class Telemetry:
    """The counters of one engine. Owner: the driver; they only rise, and live as long as it.

    Seconds are measured by those who call; there is no clock here. Demotions are counted by the
    policy, which alone knows their reasons (`DeviceView.demotions`).
    """

    def __init__(self) -> None:
        self._activations = {source: Histogram(STALL_BOUNDS_S) for source in SOURCES}
        self._loads = Histogram(LOAD_BOUNDS_S)
        self._waits = Histogram(WAIT_BOUNDS_S)
        self._promotions = 0
        self._promotion_s = 0.0
        self._promotion_failures = 0
        self._load_failures = 0
        self._checks = 0

    def activated(self, source: Source, seconds: float, *, is_checked: bool) -> None:
        """An adapter was put into a slot; a step, so each running request, waited so many seconds.

        The source is where it was when its request needed it: disk if it was read for that. With
        `is_checked` its bytes were compared with the host copy.
        """
        self._activations[source].observe(seconds)
        self._checks += is_checked

    def loaded(self, seconds: float) -> None:
        """An adapter was read from disk to host memory."""
        self._loads.observe(seconds)

    def load_failed(self) -> None:
        """A read from disk ended without an adapter in host memory."""
        self._load_failures += 1

    def promoted(self, seconds: float) -> None:
        """A copy in KV blocks is complete, so many seconds after it was ordered."""
        self._promotions += 1
        self._promotion_s += seconds

    def promotion_failed(self) -> None:
        """A copy in KV blocks could not be made."""
        self._promotion_failures += 1

    def waited(self, seconds: float) -> None:
        """A request waited so long for host memory to have its adapter; 0 if it was there."""
        self._waits.observe(seconds)

    def counts(self) -> dict[str, Any]:
        """Everything, as what JSON and msgpack know."""
        return {
            "activation_stall_seconds": {s: h.counts() for s, h in self._activations.items()},
            "load_seconds": self._loads.counts(),
            "wait_seconds": self._waits.counts(),
            "load_failures": self._load_failures,
            "promotions": self._promotions,
            "promotion_seconds": self._promotion_s,
            "promotion_failures": self._promotion_failures,
            "checks": self._checks,
        }


class AdapterWaits:
    """How long requests wait for adapters that are not in memory. Owner: the driver.

    Invariant: it remembers nothing of requests that ended, nor of adapters that were forgotten.
    """

    def __init__(self, telemetry: Telemetry, log: EventLog | None) -> None:
        self._telemetry = telemetry
        self._log = log
        self._cold: set[AdapterId] = set()
        # When requests arrived whose adapter was not in host memory, and has not been since.
        self._absent: dict[AdapterId, dict[RequestId, float]] = {}
        self._load_waits_s: dict[AdapterId, float] = {}  # until the adapter is in a slot

    def arrived(
        self, adapter_id: AdapterId, request_id: RequestId, now_s: float, *, is_in_host: bool
    ) -> None:
        """A request came; `is_in_host` if its adapter is in host memory."""
        if is_in_host:
            self._telemetry.waited(0.0)
        else:
            self._absent.setdefault(adapter_id, {})[request_id] = now_s

    def ended(self, adapter_id: AdapterId, request_id: RequestId) -> None:
        """A request ended; it did not live to see its adapter in host memory, if it was absent."""
        waiting = self._absent.get(adapter_id, {})
        waiting.pop(request_id, None)
        if not waiting:
            self._absent.pop(adapter_id, None)

    def loaded(self, adapter_id: AdapterId, now_s: float) -> None:
        """An adapter is in host memory from now on."""
        waits_s = [now_s - since_s for since_s in self._absent.pop(adapter_id, {}).values()]
        for wait_s in waits_s:
            self._telemetry.waited(wait_s)
        self._load_waits_s[adapter_id] = max(waits_s, default=0.0)

    def planned(self, activations: Iterable[Activation]) -> None:
        """The adapters of these activations are about to be put into slots."""
        self._cold.update(a.adapter_id for a in activations if a.is_cold)

    def begun(self, activations: Iterable[Activation]) -> None:
        """A batch uses these from where they lie from now on; no step waits for that."""
        for begun in activations:
            source: Source = "disk" if begun.is_cold else "host"
            wait_s = self._load_waits_s.pop(begun.adapter_id, 0.0)
            if self._log is not None:
                self._log.record(
                    "adapter_wait", begun.adapter_id, wait_s, in_step=False, source=source
                )

    def activated(self, ack: Activated) -> None:
        """An adapter is in its slot."""
        adapter_id = AdapterId(ack.adapter_id)
        is_cold = adapter_id in self._cold
        self._cold.discard(adapter_id)
        warm: Source = "device" if ack.from_device else "host"
        source = "disk" if is_cold else warm
        self._telemetry.activated(source, ack.seconds, is_checked=ack.is_checked)
        wait_s = self._load_waits_s.pop(adapter_id, 0.0) + ack.seconds
        if self._log is not None:
            self._log.record("adapter_wait", adapter_id, wait_s, in_step=False, source=source)

    def forget(self, adapter_id: AdapterId) -> None:
        """The adapter is known no longer."""
        self._cold.discard(adapter_id)
        self._load_waits_s.pop(adapter_id, None)


KEPT = 16_384


class ArrivalLog:
    """The last requests with an adapter, each with its adapter's tier at that moment.

    Owner: the driver; lives as long as it. Invariant: the newest has the number `_count`, and those
    kept are numbered without gap.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._last: deque[tuple[str, str]] = deque(maxlen=kept)
        self._count = 0

    def note(self, request_id: str, place: Place) -> None:
        """A request arrived, whose adapter was in this place."""
        self._last.append((request_id, place.value))
        self._count += 1

    def after(self, number: int) -> dict[str, Any]:
        """The arrivals counted after the `number`-th, as far as they are kept, and the newest's number."""
        wanted = min(max(0, self._count - number), len(self._last))
        newest = list(islice(reversed(self._last), wanted))
        return {"next": self._count, "arrivals": [list(pair) for pair in reversed(newest)]}
