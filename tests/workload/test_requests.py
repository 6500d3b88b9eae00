"""Whole workloads."""

from collections import Counter
from dataclasses import replace
from typing import Any

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.arrivals import Gamma, Recorded
from chameleon_lora.workload.lengths import LengthScale
from chameleon_lora.workload.named_adapters import named_adapters, trace_adapters
from chameleon_lora.workload.requests import TimedRequest, WorkloadSpec, make_workload
from chameleon_lora.workload.trace import TraceRow

ADAPTERS = ("a", "b", "c")
SPEC = WorkloadSpec(4.0, 50.0, 1.0, LengthScale(1 / 16, (4, 192), (4, 48)))
GOLDEN_TIMES = [(0, 0.1226, "a"), (1, 0.4705, "a"), (2, 1.2891, "c")]
GOLDEN_LENGTHS = [(192, 4), (25, 8), (89, 9)]


def test_a_seed_fixes_every_request() -> None:
    """The same arguments give equal requests, another seed gives others."""
    assert make_workload(SPEC, ADAPTERS, 7) == make_workload(SPEC, ADAPTERS, 7)
    assert make_workload(SPEC, ADAPTERS, 7) != make_workload(SPEC, ADAPTERS, 8)


def test_one_seed_gives_the_same_bytes_for_ever() -> None:
    """The first three requests of seed 0, so that published figures can be made again."""
    first = make_workload(SPEC, ADAPTERS, 0)[:3]
    assert [(r.index, round(r.arrival_s, 4), r.adapter) for r in first] == GOLDEN_TIMES
    assert [(r.input_tokens, r.output_tokens) for r in first] == GOLDEN_LENGTHS


def test_another_rate_changes_only_the_times() -> None:
    """At twice the rate each request keeps adapter and lengths, and arrives at half its time."""
    slow = make_workload(SPEC, ADAPTERS, 1)
    fast = make_workload(replace(SPEC, rate_per_s=8.0), ADAPTERS, 1)[: len(slow)]
    assert [replace(r, arrival_s=0.0) for r in fast] == [replace(r, arrival_s=0.0) for r in slow]
    assert [r.arrival_s for r in fast] == pytest.approx([r.arrival_s / 2.0 for r in slow])


def test_indices_follow_the_arrivals() -> None:
    """Index i is the i-th request to arrive."""
    requests = make_workload(SPEC, ADAPTERS, 2)
    assert [r.index for r in requests] == list(range(len(requests)))
    assert sorted(r.arrival_s for r in requests) == [r.arrival_s for r in requests]


def test_base_share_is_the_share_without_adapter() -> None:
    """With a base share of 1 no request names an adapter, with 0 each does."""
    to_base = make_workload(replace(SPEC, base_share=1.0), ADAPTERS, 3)
    assert {r.adapter for r in to_base} == {None}
    assert {r.adapter for r in make_workload(SPEC, ADAPTERS, 3)} == set(ADAPTERS)


def test_a_workload_without_adapters_is_refused() -> None:
    """There is nothing to be popular."""
    with pytest.raises(ConfigError, match="over 0 adapters"):
        make_workload(SPEC, (), 4)


def test_a_base_share_above_one_is_refused() -> None:
    """A share is at most 1."""
    with pytest.raises(ConfigError, match=r"base share of 1\.5"):
        replace(SPEC, base_share=1.5)


ROWS = (
    TraceRow(0.0, "x", 10, 1),
    TraceRow(1.0, "y", 20, 2),
    TraceRow(3.0, None, 30, 3),
    TraceRow(6.0, "x", 40, 4),
)
REPLAY = WorkloadSpec(0.5, 8.0, arrivals=Recorded(), trace=ROWS, recorded_adapters=True)


def test_a_trace_is_replayed_as_recorded() -> None:
    """At its own rate, one over 2 s, each request is the trace's: time, adapter and lengths."""
    assert tuple(
        TimedRequest(index, row.arrival_s, row.adapter, row.input_tokens, row.output_tokens)
        for index, row in enumerate(ROWS)
    ) == make_workload(REPLAY, trace_adapters(ROWS), 0)


def test_a_replay_is_stretched_scaled_and_begun_anew() -> None:
    """Twice the rate, double lengths, and after four requests the first again."""
    spec = replace(REPLAY, rate_per_s=1.0, lengths=LengthScale(2.0))
    requests = make_workload(spec, trace_adapters(ROWS), 0)
    assert [0.0, 0.5, 1.5, 3.0, 4.0, 4.5, 5.5, 7.0] == [r.arrival_s for r in requests]
    assert ["x", "y", None, "x"] * 2 == [r.adapter for r in requests]
    assert [(20, 2), (40, 4), (60, 6), (80, 8)] * 2 == [
        (r.input_tokens, r.output_tokens) for r in requests
    ]


def test_drawn_arrivals_draw_whole_rows_of_a_trace() -> None:
    """Each row comes once before any again, its adapter with its lengths."""
    spec = replace(REPLAY, rate_per_s=50.0, arrivals=Gamma(2.0))
    requests = make_workload(spec, trace_adapters(ROWS), 1)
    first = sorted((r.input_tokens, r.output_tokens, r.adapter) for r in requests[:4])
    assert [(*row.lengths, row.adapter) for row in ROWS] == first
    assert len(requests) > 100


def test_adapters_may_be_drawn_for_a_trace() -> None:
    """Times and lengths stay recorded, and names come from the list."""
    spec = replace(REPLAY, recorded_adapters=False)
    requests = make_workload(spec, ADAPTERS, 2)
    assert [row.arrival_s for row in ROWS] == [r.arrival_s for r in requests]
    assert {r.adapter for r in requests} <= set(ADAPTERS)


def test_each_adapter_of_a_replay_must_be_given() -> None:
    """The message names one that is not, and who gives them."""
    with pytest.raises(ConfigError, match=r"names 2 adapters .* the first 'x'; .*trace_adapters"):
        make_workload(REPLAY, ADAPTERS, 0)


@pytest.mark.parametrize("recorded", [{"arrivals": Recorded()}, {"recorded_adapters": True}])
def test_what_is_recorded_needs_a_trace(recorded: dict[str, Any]) -> None:
    """The message says how to read one."""
    with pytest.raises(ConfigError, match=r"trace=read_trace\(path\)"):
        WorkloadSpec(1.0, 1.0, **recorded)


def test_ranks_are_equally_popular_in_the_papers_mix() -> None:
    """Of 10,000 requests for 100 adapters each of five ranks gets a fifth, +- 4 deviations."""
    adapters = named_adapters(100)
    spec = WorkloadSpec(100.0, 100.0, rank_alpha=0.0)
    requests = make_workload(spec, adapters, 3)
    rank_of = {adapter.name: adapter.rank for adapter in adapters}
    counts = Counter(rank_of[r.adapter] for r in requests if r.adapter is not None)
    assert [8, 16, 32, 64, 128] == sorted(counts)
    assert pytest.approx([len(requests) / 5] * 5, abs=160) == list(counts.values())


def test_popularity_drifts_with_time() -> None:
    """With nearly all requests for the first adapter, another is the first in each 10 s."""
    spec = WorkloadSpec(20.0, 30.0, alpha=20.0, shift_s=10.0)
    requests = make_workload(spec, ADAPTERS, 4)
    of_tens = [{r.adapter for r in requests if int(r.arrival_s / 10.0) == ten} for ten in range(3)]
    assert [{"a"}, {"b"}, {"c"}] == of_tens


def test_streams_are_apart() -> None:
    """Other popularity, drift and base share change only the adapters, and lengths only lengths."""
    plain = make_workload(SPEC, ADAPTERS, 5)
    other = make_workload(
        replace(SPEC, alpha=0.0, shift_s=1.0, base_share=0.5, lengths=LengthScale()), ADAPTERS, 5
    )
    assert [r.arrival_s for r in plain] == [r.arrival_s for r in other]
    scale = SPEC.lengths
    assert [(r.input_tokens, r.output_tokens) for r in plain] == [
        scale.scaled((r.input_tokens, r.output_tokens)) for r in other
    ]
    spared = make_workload(replace(SPEC, base_share=0.5), ADAPTERS, 5)
    assert {(None, True), (None, False)} >= {
        (r.adapter and None, r.adapter == p.adapter) for r, p in zip(spared, plain, strict=True)
    }
