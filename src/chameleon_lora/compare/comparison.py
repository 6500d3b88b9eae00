"""The same requests on two or more servers, one after the other, until the ratios are sure."""

import statistics
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from chameleon_lora.bench.run_folder import Purpose
from chameleon_lora.compare.arm_run import ArmServer, RunResult, Say, base_model_of, meets
from chameleon_lora.compare.arms import Arm, differences
from chameleon_lora.compare.comparison_file import (
    COMPARISON,
    FIGURES,
    CliffPoint,
    ComparedArm,
    ComparisonFile,
    write_comparison,
)
from chameleon_lora.compare.points import LoadPoints, TrafficSpec
from chameleon_lora.compare.ratios import is_tight, load_ratios, sustained
from chameleon_lora.errors import BenchError
from chameleon_lora.metrics.highest import STEP, narrowed
from chameleon_lora.servers.launching import this_machine
from chameleon_lora.servers.process import ServerSpec, free_port, running_server

SLO_FACTOR = 5.0
"""The objective over the mean unloaded time to first token (the paper's section 5)."""
SEARCH_TOLERANCE = 0.1
FARTHEST = 3.0


@dataclass(frozen=True, slots=True)
class ComparisonPlan:
    """A comparison.

    Attributes:
        arms: the first is the base, which every other one is set against.
        capacity_per_s: of the base; None to measure it.
        is_capacity_at_slo: measured capacity is the highest load that meets the objective, the paper's
            sense; else what the base completes with as much work as it can take.
        slo_s: most that P99 time to first token may be; None for SLO_FACTOR times the unloaded mean.
        searches: also look for the highest load that meets the objective.
        repeats: how often each arm is run at most.
        width: no more repeats once every interval at every load is as narrow, in parts of its ratio.
        budget_s: no repeat is begun that would end later.
        environment: of the servers, on top of our own.
        command: makes it again.
    """

    arms: tuple[Arm, ...]
    load_points: LoadPoints
    traffic: TrafficSpec
    folder: Path
    seats: int
    capacity_per_s: float | None = None
    is_capacity_at_slo: bool = False
    slo_s: float | None = None
    searches: bool = False
    repeats: int = 3
    width: float = 0.1
    budget_s: float = 3600.0
    environment: Mapping[str, str] = field(default_factory=dict)
    command: str = ""


class Comparison:
    """One comparison under way. Owner of all it has measured; never runs two servers at once."""

    def __init__(self, plan: ComparisonPlan, clock: Callable[[], float], say: Say) -> None:
        self._plan = plan
        self._clock = clock
        self._say = say
        self._capacity_per_s = plan.capacity_per_s or 0.0
        self._slo_s = plan.slo_s or 0.0
        self._results: dict[str, dict[int, list[RunResult]]] = {arm.label: {} for arm in plan.arms}
        self._highest: dict[str, dict[int, float]] = {arm.label: {} for arm in plan.arms}
        self._troubles: list[str] = []

    def run(self) -> ComparisonFile:
        """All repeats, in the order A B, B A, A B, ...; comparison.json is written after each.

        An interrupt (SIGINT) ends it, and what was measured by then is kept.

        Raises:
            BenchError: the base arm did not start, or failed before its figures were known.
        """
        try:
            stopped = self._repeat()
        except KeyboardInterrupt:
            stopped = "interrupted"
            self._troubles.append(stopped)
        return self._so_far(stopped)

    def _repeat(self) -> str:
        """Repeats until there is a reason to stop, which it answers."""
        plan, began_s, longest_s = self._plan, self._clock(), 0.0
        for repeat in range(plan.repeats):
            start_s = self._clock()
            if repeat and start_s - began_s + longest_s > plan.budget_s:
                return f"another repeat would not have ended within {plan.budget_s:g} s"
            for arm in plan.arms if repeat % 2 == 0 else plan.arms[::-1]:
                self._run_arm(arm, repeat)
            longest_s = max(longest_s, self._clock() - start_s)
            found = self._so_far("under way")
            if repeat and is_tight(found.ratios, plan.width):
                return f"every interval is within {plan.width:.0%} of its ratio"
        return "all repeats were made"

    def _run_arm(self, arm: Arm, repeat: int) -> None:
        """One arm's server, all its points; what goes wrong with another than the base is noted."""
        plan, port = self._plan, free_port()
        folder = plan.folder / arm.label
        folder.mkdir(parents=True, exist_ok=True)
        log = folder / f"server-{repeat}.log"
        self._say(f"{arm.label}, repeat {repeat + 1}: starting")
        is_first = repeat == 0 and arm is plan.arms[0]
        try:
            spec = ServerSpec(arm.on(port), port, log, plan.environment)
            with running_server(spec) as url:
                server = ArmServer(
                    arm, url, base_model_of(url), plan.traffic, repeat, plan.folder,
                    plan.command, plan.load_points.slots, self._say,
                )  # fmt: skip
                server.warm_up()
                if is_first:
                    self._calibrate(server)
                self._go(server)
        except BenchError as error:
            if is_first:
                raise
            self._troubles.append(f"{arm.label}, repeat {repeat + 1}: {error}")
            self._say(self._troubles[-1])

    def _calibrate(self, server: ArmServer) -> None:
        """Capacity and objective, where they were not given.

        Raises:
            BenchError: capacity is to be that at the objective, and no load meets it.
        """
        label, plan = server.arm.label, self._plan
        is_given = self._capacity_per_s > 0.0
        if not is_given:
            self._capacity_per_s = server.capacity_per_s(plan.seats)
        if not self._slo_s:
            self._slo_s = SLO_FACTOR * server.unloaded_ttft_s(self._capacity_per_s)
        if plan.is_capacity_at_slo and not is_given:
            self._say(f"{label} completes {self._capacity_per_s:.2f} requests/s at most")
            self._capacity_per_s = self._search(server, [])
        if not self._capacity_per_s:
            raise BenchError(
                f"{label} meets {self._slo_s * 1e3:.0f} ms to the first token at no load: give a "
                "longer --slo-ttft, or --capacity"
            )
        self._say(
            f"{label}'s capacity is {self._capacity_per_s:.2f} requests/s; the objective is "
            f"{self._slo_s * 1e3:.0f} ms"
        )

    def _go(self, server: ArmServer) -> None:
        label, repeat = server.arm.label, server.repeat
        results = self._results[label].setdefault(repeat, [])
        for point in self._plan.load_points.points(self._capacity_per_s):
            results.append(server.measure(point, self._slo_s))
        if self._plan.searches:
            self._highest[label][repeat] = self._search(server, results)

    def _search(self, server: ArmServer, results: list[RunResult]) -> float:
        """The highest load, in requests/s, that meets the objective; 0 if none does.

        The runs at given loads are where it begins.
        """
        capacity, load_points = self._capacity_per_s, self._plan.load_points

        def holds(rate_per_s: float) -> bool:
            point = load_points.at(Purpose.SEARCH, rate_per_s, capacity, rate_per_s / capacity)
            results.append(server.measure(point, self._slo_s))
            return meets(results[-1], self._slo_s)

        known = sorted(
            (run.point.rate_per_s, meets(run, self._slo_s))
            for run in results
            if run.point.purpose is Purpose.LOAD
        ) or [(0.7 * capacity, holds(0.7 * capacity))]
        low, high = bracket(known)
        while high is None:
            rate = low * STEP
            if rate > FARTHEST * capacity:
                return low
            low, high = (rate, None) if holds(rate) else (low, rate)
        while not low:
            if high < capacity / 50.0:
                return 0.0
            low, high = (high / STEP, high) if holds(high / STEP) else (0.0, high / STEP)
        return narrowed(holds, low, high, SEARCH_TOLERANCE)

    def _so_far(self, stopped: str) -> ComparisonFile:
        """What was found by now; comparison.json holds it."""
        plan, base = self._plan, self._plan.arms[0]
        labels = [arm.label for arm in plan.arms]
        found = ComparisonFile(
            base=base.label,
            command=plan.command,
            machine=this_machine(),
            arms=tuple(
                ComparedArm(arm.label, arm.command, differences(base, arm)) for arm in plan.arms
            ),
            figures={figure.name: figure.text for figure in FIGURES},
            capacity_per_s=self._capacity_per_s,
            stopped=stopped,
            ratios=load_ratios(labels, self._results),
            sustained=sustained(labels, self._highest),
            failed=sum(run.failed for run in self._all_results()),
            troubles=tuple(self._troubles),
            slo_ttft_s=self._slo_s,
            cliff=tuple(self._cliff(labels)),
        )
        write_comparison(plan.folder / COMPARISON, found)
        return found

    def _all_results(self) -> Iterator[RunResult]:
        return (
            run for repeats in self._results.values() for runs in repeats.values() for run in runs
        )

    def _cliff(self, labels: Sequence[str]) -> Iterator[CliffPoint]:
        for label in labels:
            p50s: defaultdict[float, list[float]] = defaultdict(list)
            for run in (run for runs in self._results[label].values() for run in runs):
                if run.point.purpose is Purpose.CLIFF and (ttft := run.ttft):
                    p50s[run.point.value].append(ttft.p50_s)
            for value in sorted(p50s):
                yield CliffPoint(label, value, statistics.median(p50s[value]))


def bracket(known: Sequence[tuple[float, bool]]) -> tuple[float, float | None]:
    """The lowest rate that failed, None if none did, and below it the highest that held, or 0."""
    high = min((rate for rate, has_held in known if not has_held), default=None)
    low = max(
        (rate for rate, has_held in known if has_held and (high is None or rate < high)),
        default=0.0,
    )
    return low, high
