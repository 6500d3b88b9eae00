"""One server of a comparison, from its start to its end, and what it showed."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from chameleon_lora.bench.discovery import ask_server
from chameleon_lora.bench.measuring import is_gone
from chameleon_lora.bench.printed import has_fallen_behind
from chameleon_lora.bench.replay import Target, replay, run_loop
from chameleon_lora.bench.run_folder import write_run
from chameleon_lora.bench.watch import watched_replay
from chameleon_lora.compare.arms import Arm
from chameleon_lora.compare.points import Point, TrafficSpec
from chameleon_lora.errors import BenchError
from chameleon_lora.metrics.errors import by_cause
from chameleon_lora.metrics.objectives import Objective
from chameleon_lora.metrics.record import RequestRecord, ttfts_s
from chameleon_lora.metrics.serving import Window, serving_result
from chameleon_lora.metrics.summary import Spread, spread
from chameleon_lora.workload.named_adapters import card, name_of, ranks_of
from chameleon_lora.workload.requests import TimedRequest

Say = Callable[[str], None]
WARM_UP_GAP_S = 0.1
UNLOADED_SHARE, UNLOADED_REQUESTS = 0.05, 24
PROBE_REQUESTS_A_SEAT = 8


@dataclass(frozen=True, slots=True)
class RunResult:
    """One run: what was asked for, and what came.

    Attributes:
        records: those that count.
        output_tokens_per_s: as summary.json has it (`metrics.serving`).
    """

    point: Point
    records: tuple[RequestRecord, ...]
    output_tokens_per_s: float

    @property
    def ttft(self) -> Spread | None:
        """Times to first token of the completed requests; None if there are none."""
        return spread(ttfts_s(self.records))

    @property
    def failed(self) -> int:
        """Requests that got no whole answer."""
        return sum(not record.is_completed for record in self.records)


@dataclass(frozen=True, slots=True)
class ArmServer:
    """A server that is up, as one arm of one repeat. It writes each run into a folder of its own.

    Attributes:
        command: makes the whole comparison again.
    """

    arm: Arm
    url: str
    base_model: str
    traffic: TrafficSpec
    repeat: int
    folder: Path
    command: str
    slots: int
    say: Say

    def warm_up(self) -> None:
        """One request for the base model and for each adapter, so that all have been read once.

        Raises:
            BenchError: one of them failed.
        """
        names: list[str | None] = [None, *map(name_of, self.traffic.adapters)]
        requests = [
            TimedRequest(index, WARM_UP_GAP_S * index, name, 8, 4)
            for index, name in enumerate(names)
        ]
        records = run_loop(replay(self._target, requests))
        for cause in by_cause(records):
            raise BenchError(
                f"{self.arm.label} failed {cause.count} of {len(records)} warm-up requests, the "
                f"first with: {cause.example}"
            )

    def capacity_per_s(self, seats: int) -> float:
        """Requests/s with as much work as it can take."""
        count = max(64, PROBE_REQUESTS_A_SEAT * seats)
        requests = self.traffic.requests_of(
            50.0, count / 25.0, self.traffic.adapters, self.traffic.seed
        )
        return measure_capacity(self._target, requests[:count], seats=min(seats, count // 2))

    def unloaded_ttft_s(self, capacity_per_s: float) -> float:
        """Mean time to first token at a twentieth of the capacity."""
        rate = UNLOADED_SHARE * capacity_per_s
        requests = self.traffic.requests_of(
            rate, UNLOADED_REQUESTS / rate, self.traffic.adapters, self.traffic.seed
        )
        ttft = spread(ttfts_s(run_loop(replay(self._target, requests))))
        if ttft is None:
            raise BenchError(f"{self.arm.label} completed no request of an unloaded run")
        return ttft.mean_s

    def measure(self, point: Point, slo_s: float) -> RunResult:
        """Sends the point's requests and writes the run's folder.

        Raises:
            BenchError: the server is gone; the folder is written all the same.
        """
        requests = self.traffic.requests(point, self.repeat)
        self.say(
            f"{self.arm.label}, repeat {self.repeat + 1}: {point.name}, {len(requests)} requests at "
            f"{point.rate_per_s:.2f}/s"
        )
        run = run_loop(watched_replay(self._target, requests))
        traffic, objectives = self.traffic, {Objective.TTFT: slo_s}
        ranks = ranks_of(traffic.adapters)
        window = Window(traffic.warmup_s, traffic.duration_s, objectives, ranks)
        folder = self.folder / self.arm.label / f"{self.repeat}-{point.name}"
        summary = serving_result(run.records, window)
        write_run(folder, self._config(point, slo_s), run.records, summary, run.samples)
        if has_fallen_behind(summary):
            self.say(f"{self.arm.label}, {point.name}: this client fell behind; see {folder}")
        result = RunResult(point, window.measured(run.records), summary["output_throughput"])
        if result.failed and is_gone(self._target):
            raise BenchError(
                f"the server was gone after {point.name}: {result.failed} of {len(result.records)} "
                f"requests failed, as {folder} tells"
            )
        return result

    @property
    def _target(self) -> Target:
        return Target(self.url, self.base_model, self.traffic.token_ids)

    def _config(self, point: Point, slo_s: float) -> dict[str, object]:
        traffic = self.traffic
        return {
            "label": self.arm.label,
            "purpose": point.purpose.value,
            "point": point.value,
            "repeat": self.repeat,
            "load": point.share,
            "rate_per_s": point.rate_per_s,
            "seed": traffic.seed + self.repeat,
            "duration_s": traffic.duration_s,
            "warmup_s": traffic.warmup_s,
            "slo_ttft_s": slo_s,
            "adapters": [card(adapter) for adapter in traffic.adapters[: point.active_adapters]],
            "active_adapters": point.active_adapters,
            "slots": self.slots,
            "command": self.command,
            "server": list(self.arm.command),
            "workload": dict(traffic.described),
        }


def base_model_of(url: str) -> str:
    """The name that the server gives its base model."""
    return run_loop(ask_server(url)).base_model


def meets(result: RunResult, slo_s: float) -> bool:
    """Did every request succeed, and 99 % of them in time?"""
    ttft = result.ttft
    return not result.failed and ttft is not None and ttft.p99_s <= slo_s


def measure_capacity(target: Target, requests: Sequence[TimedRequest], *, seats: int) -> float:
    """Requests/s of a server with `seats` seats that is given all of `requests` at once.

    See `capacity_from` for the estimate. The requests' own arrival times are ignored.

    Raises:
        BenchError: a request failed, or there are too few of them.
    """
    at_once = [replace(request, arrival_s=0.0) for request in requests]
    return capacity_from(run_loop(replay(target, at_once)), seats=seats)


def capacity_from(records: Sequence[RequestRecord], *, seats: int) -> float:
    """Completed requests/s while all seats were taken.

    The clock stops when only `seats` requests are left, for from then on seats stand empty; those
    left are half done on average, so half of them count.

    Raises:
        BenchError: a request failed, or there are no more requests than seats.
    """
    for record in records:
        if record.error is not None:
            raise BenchError(f"request {record.index} of the capacity probe failed: {record.error}")
    if len(records) <= seats:
        raise BenchError(
            f"{len(records)} requests cannot fill {seats} seats: probe with more than {seats}"
        )
    ends_s = sorted(record.end_s for record in records)
    full = len(records) - seats
    return (full + seats / 2.0) / ends_s[full - 1]
