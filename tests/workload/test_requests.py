"""Whole workloads."""

from dataclasses import replace

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.lengths import LengthScale
from chameleon_lora.workload.requests import WorkloadSpec, make_workload

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
