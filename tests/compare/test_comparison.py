"""Comparisons from end to end, with small servers of our own, each in a process of its own."""

import itertools
import json
import sys
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.bench.run_folder import Purpose, read_config, read_records
from chameleon_lora.compare.arms import Arm
from chameleon_lora.compare.comparison import (
    Comparison,
    ComparisonPlan,
    bracket,
)
from chameleon_lora.compare.comparison_file import (
    COMPARISON,
    FIGURES,
    ComparisonFile,
    read_comparison,
)
from chameleon_lora.compare.intervals import ValuesOf, paired, percentile_ratio
from chameleon_lora.compare.points import LoadPoints, Point, TrafficSpec
from chameleon_lora.compare.ratios import SPECS
from chameleon_lora.errors import BenchError
from chameleon_lora.metrics.record import RequestRecord, token_gaps_s, ttfts_s
from chameleon_lora.workload.named_adapters import NamedAdapter
from chameleon_lora.workload.requests import TimedRequest
from tests.bench import fake_openai

FAKE = Path(fake_openai.__file__)
DURATION_S, WARMUP_S = 0.5, 0.1
ADAPTERS = (NamedAdapter("a", 4), NamedAdapter("b", 8), NamedAdapter("c", 8))


def evenly(
    rate_per_s: float, duration_s: float, adapters: Any, seed: int
) -> tuple[TimedRequest, ...]:
    """Requests at equal distances, over the adapters in turn, of ten tokens and the seed's more."""
    times = (n / rate_per_s for n in itertools.count())
    arrivals = itertools.takewhile(lambda at_s: at_s < duration_s, times)
    names = itertools.cycle(adapter.name for adapter in adapters)
    return tuple(
        TimedRequest(index, at_s, name, 5, 10 + seed)
        for index, (at_s, name) in enumerate(zip(arrivals, names, strict=False))
    )


def arm(label: str, tokens_per_s: int, *more: str) -> Arm:
    """A server of that speed."""
    command = (sys.executable, str(FAKE), "{port}", "--tokens-per-s", str(tokens_per_s), *more)
    return Arm(label, command, {"speed": str(tokens_per_s)})


def plan(folder: Path, **fields: Any) -> ComparisonPlan:
    """A slow server and one twice as fast, half a second each, at a capacity that is given."""
    traffic = TrafficSpec(evenly, ADAPTERS, (3, 100), DURATION_S, WARMUP_S, 0, {"kind": "even"})
    made = ComparisonPlan(
        arms=(arm("slow", 200), arm("fast", 400)),
        load_points=LoadPoints(adapters=3, slots=2, loads=(0.5, 1.0)),
        traffic=traffic,
        folder=folder,
        seats=4,
        capacity_per_s=40.0,
        slo_s=30.0,  # met by any machine
        repeats=2,
        width=1e-9,
    )
    return replace(made, **fields)


def run(
    asked: ComparisonPlan, clock: Iterator[float] | None = None
) -> tuple[ComparisonFile, list[str]]:
    """What came out, and what was said."""
    said: list[str] = []
    ticks = clock or itertools.repeat(0.0)
    return Comparison(asked, lambda: next(ticks), said.append).run(), said


@dataclass(frozen=True)
class ComparisonDone:
    """A comparison that was run to its end."""

    folder: Path
    result: ComparisonFile
    said: list[str]


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> ComparisonDone:
    """Two repeats of two arms at two loads."""
    folder = tmp_path_factory.mktemp("comparison")
    return ComparisonDone(folder, *run(plan(folder, command="chameleon compare")))


def test_both_arms_get_the_same_requests_in_alternating_order(done: ComparisonDone) -> None:
    """A B, then B A; equal indexes, adapters and lengths in each repeat, other lengths in the next."""
    result, said = done.result, done.said
    starts = [line.split(",")[0] for line in said if line.endswith("starting")]
    assert ["slow", "fast", "fast", "slow"] == starts
    runs = {
        (label, repeat): [
            (r.index, r.adapter, r.output_tokens)
            for r in read_records(done.folder / label / f"{repeat}-load-1")
        ]
        for label in ("slow", "fast")
        for repeat in (0, 1)
    }
    assert runs["slow", 0] == runs["fast", 0]
    assert runs["slow", 1] == runs["fast", 1]
    assert [11] * 20 == [tokens for _, _, tokens in runs["slow", 1]]
    assert (0, ()) == (result.failed, result.troubles)


@pytest.mark.parametrize(
    ("figure", "values_of"), [("ttft_p99", ttfts_s), ("itl_p99", token_gaps_s)]
)
def test_a_ratio_is_that_of_the_runs_folders(
    done: ComparisonDone, figure: str, values_of: ValuesOf
) -> None:
    """P99 of the fast arm over the slow one's, by two pairs, at both loads.

    The folders have microseconds.
    """

    def counted(label: str, repeat: int, load: float) -> list[RequestRecord]:
        records = read_records(done.folder / label / f"{repeat}-load-{load:g}")
        return [record for record in records if WARMUP_S <= record.arrival_s < DURATION_S]

    found = [ratio for ratio in done.result.ratios if ratio.figure == figure]
    assert [0.5, 1.0] == [ratio.point for ratio in found]
    for ratio in found:
        pairs = [
            paired(counted("slow", n, ratio.point), counted("fast", n, ratio.point), values_of)
            for n in (0, 1)
        ]
        expected = percentile_ratio(pairs, 99.0)
        assert expected is not None
        assert 2 == expected.pairs == ratio.pairs
        assert [expected.low, expected.ratio, expected.high] == pytest.approx(
            [ratio.low, ratio.ratio, ratio.high], rel=1e-2
        )


def test_each_run_is_a_folder_that_says_what_it_was(done: ComparisonDone) -> None:
    """Label, purpose, load, rate, repeat, adapters with ranks, and the command."""
    config = read_config(done.folder / "fast" / "0-load-0.5")
    expected = {
        "label": "fast", "purpose": "load", "load": 0.5, "rate_per_s": 20.0, "repeat": 0,
        "active_adapters": 3, "slots": 2, "slo_ttft_s": 30.0, "command": "chameleon compare",
    }  # fmt: skip
    assert expected == {key: config[key] for key in expected}
    assert {"name": "a", "rank": 4} == config["adapters"][0]


def test_comparison_json_says_what_differs(done: ComparisonDone) -> None:
    """Base, arms, machine, ratios and why it stopped."""
    fields = json.loads((done.folder / COMPARISON).read_text("utf8"))
    assert ("slow", "all repeats were made") == (fields["base"], fields["stopped"])
    differs = {each["label"]: each["differs"] for each in fields["arms"]}
    assert {"slow": [], "fast": ["speed: 400 instead of 200"]} == differs
    assert fields["machine"]
    assert {"fast"} == {ratio["label"] for ratio in fields["ratios"]}


def test_what_is_written_is_read_as_it_was(done: ComparisonDone) -> None:
    """By whoever makes a report of it."""
    found = read_comparison(done.folder / COMPARISON)
    assert done.result == found
    assert ["slow", "fast"] == [each.label for each in found.arms]


def test_it_stops_when_the_intervals_are_narrow(tmp_path: Path) -> None:
    """Any interval is within 1,000 times its ratio: two repeats of five are made."""
    result, said = run(plan(tmp_path, repeats=5, width=1000.0))
    assert "every interval is within" in result.stopped
    assert not any("repeat 3" in line for line in said)


def test_no_repeat_is_begun_that_would_overrun_the_budget(tmp_path: Path) -> None:
    """A repeat takes 30 s by this clock; begun at 90 s, the second would end after the 100 of the budget."""
    result, said = run(plan(tmp_path, repeats=5, budget_s=100.0), itertools.count(0.0, 30.0))
    assert "would not have ended within 100 s" in result.stopped
    assert not any("repeat 2" in line for line in said)


def test_capacity_and_objective_are_measured_on_the_base(tmp_path: Path) -> None:
    """Where they are not given: above nought, and told."""
    asked = plan(
        tmp_path, capacity_per_s=None, slo_s=None, repeats=1, load_points=LoadPoints(3, 2, (0.05,))
    )
    result, said = run(asked)
    assert result.capacity_per_s > 0.0
    assert 0.0 < result.slo_ttft_s < 60.0
    assert any(line.startswith("slow's capacity is") for line in said)


def test_capacity_can_be_the_load_that_meets_the_objective(tmp_path: Path) -> None:
    """A server without a limit meets it up to where the search ends: 3 times what it completes."""
    load_points = LoadPoints(3, 2, (0.01,))
    asked = plan(
        tmp_path, capacity_per_s=None, is_capacity_at_slo=True, repeats=1, load_points=load_points
    )
    result, said = run(replace(asked, arms=(arm("slow", 2000),), slo_s=5.0))
    (most,) = (line for line in said if line.startswith("slow completes"))
    assert result.capacity_per_s >= 0.7 * float(most.split()[2])


def test_the_cliff_asks_for_more_and_more_adapters(tmp_path: Path) -> None:
    """At half an adapter a slot one of three is asked for, at 1.5 all; the P50 of each is told."""
    load_points = LoadPoints(adapters=3, slots=2, cliff=(0.5, 1.5), cliff_load=0.5)
    result, _ = run(plan(tmp_path, load_points=load_points, repeats=1))
    named = [
        {r.adapter for r in read_records(tmp_path / "slow" / f"0-cliff-{value}")}
        for value in ("0.5", "1.5")
    ]
    assert [{"a"}, {"a", "b", "c"}] == named
    assert [("slow", 0.5), ("slow", 1.5), ("fast", 0.5), ("fast", 1.5)] == [
        (point.label, point.active_over_slots) for point in result.cliff
    ]


def test_the_search_ends_where_the_objective_is_met_at_any_load(tmp_path: Path) -> None:
    """A server without a limit holds up to about three times the capacity, where the search ends."""
    load_points = LoadPoints(3, 2, (1.0,))
    result, _ = run(plan(tmp_path, load_points=load_points, searches=True, repeats=1))
    slow, fast = result.sustained
    assert 40.0 * 2.0 <= slow.rate_per_s <= 40.0 * 3.0
    assert (None, 1) == (slow.ratio, fast.pairs)


def test_an_objective_that_nobody_meets_is_a_throughput_of_nought(tmp_path: Path) -> None:
    """After some runs at lower and lower loads."""
    load_points = LoadPoints(3, 2, (1.0,))
    asked = plan(tmp_path, load_points=load_points, searches=True, repeats=1, slo_s=1e-6)
    result, _ = run(replace(asked, arms=(arm("slow", 200),)))
    assert [0.0] == [row.rate_per_s for row in result.sustained]


def test_an_arm_that_does_not_start_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    """The base has its runs; the trouble names the arm and the end of its log."""
    broken = Arm("broken", (sys.executable, "-c", "raise SystemExit('no port')"), {})
    asked = plan(tmp_path, repeats=1)
    result, _ = run(replace(asked, arms=(asked.arms[0], broken)))
    assert "broken, repeat 1: the server ended with status 1" in result.troubles[0]
    assert "no port" in result.troubles[0]
    assert (tmp_path / "slow" / "0-load-1" / "summary.json").exists()


def with_a_deadly_one(
    rate_per_s: float, duration_s: float, adapters: Any, seed: int
) -> tuple[TimedRequest, ...]:
    """The third request names what kills a server that knows it."""
    requests = evenly(rate_per_s, duration_s, adapters, seed)
    return tuple(replace(r, adapter="deadly") if r.index == 2 else r for r in requests)


def test_a_server_that_dies_in_a_run_is_told_and_the_others_go_on(tmp_path: Path) -> None:
    """Its run's folder is written and names the cause; no further run of it is begun."""
    arms = (arm("slow", 200, "--adapters", "a,b,c"), arm("mortal", 400))
    asked = plan(tmp_path, arms=arms, repeats=1)
    result, said = run(
        replace(asked, traffic=replace(asked.traffic, requests_of=with_a_deadly_one))
    )
    assert "mortal, repeat 1: the server was gone after load-0.5" in result.troubles[0]
    assert not any("mortal, repeat 1: load-1" in line for line in said)
    summary = json.loads((tmp_path / "mortal" / "0-load-0.5" / "summary.json").read_text("utf8"))
    assert {"connection lost", "connection refused"} & set(summary["errors"])
    assert (tmp_path / "slow" / "0-load-1" / "summary.json").exists()


def test_a_base_that_does_not_start_ends_the_comparison(tmp_path: Path) -> None:
    """There is nothing to compare with."""
    broken = Arm("broken", (sys.executable, "-c", "raise SystemExit(3)"), {})
    with pytest.raises(BenchError, match="ended with status 3"):
        run(plan(tmp_path, arms=(broken, arm("fast", 400))))


def test_an_adapter_that_an_arm_does_not_know_is_found_before_it_is_measured(
    tmp_path: Path,
) -> None:
    """The warm-up asks for each once."""
    lacking = arm("lacking", 400, "--adapters", "a,b")
    result, _ = run(plan(tmp_path, arms=(arm("slow", 200), lacking), repeats=1))
    assert "lacking failed 1 of 4 warm-up requests" in result.troubles[0]
    assert "'c'" in result.troubles[0]


@pytest.mark.parametrize(
    ("known", "expected"),
    [
        ([(1.0, True), (2.0, True)], (2.0, None)),
        ([(1.0, True), (2.0, False), (3.0, False)], (1.0, 2.0)),
        ([(1.0, False), (2.0, True)], (0.0, 1.0)),
    ],
)
def test_a_bracket_begins_at_what_is_known(
    known: list[tuple[float, bool]], expected: tuple[float, float | None]
) -> None:
    """Below the lowest load that failed; a load that held above one that failed counts for nothing."""
    assert expected == bracket(known)


def test_every_figure_is_taken() -> None:
    """In the order in which tables have them."""
    assert [figure.name for figure in FIGURES] == [spec.name for spec in SPECS]


def test_points_are_named_after_what_they_are() -> None:
    """Folders tell purpose and value."""
    assert "load-1.05" == Point(Purpose.LOAD, 1.05, 10.0, 3, 1.05).name
