"""Counters of one engine, and the form in which they travel."""

import math

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.engine_vllm.core.telemetry import (
    LOAD_BOUNDS_S,
    SOURCES,
    STALL_BOUNDS_S,
    WAIT_BOUNDS_S,
    Histogram,
    Telemetry,
)


class TestHistogram:
    def test_a_value_falls_under_the_first_bound_that_is_not_below_it(self) -> None:
        """Bounds are inclusive, as Prometheus's `le`; what is above all has a bucket of its own."""
        histogram = Histogram([1.0, 2.0])
        for value in (0.5, 1.0, 1.5, 2.0, 2.5, 100.0):
            histogram.observe(value)
        assert {"bounds": [1.0, 2.0], "counts": [2, 2, 2], "sum": 107.5} == histogram.counts()

    @given(st.lists(st.floats(0, 1e6)))
    def test_it_counts_as_if_one_counted_by_hand(self, values: list[float]) -> None:
        """Up to each bound there are as many as values not above it."""
        histogram = Histogram(WAIT_BOUNDS_S)
        for value in values:
            histogram.observe(value)
        counted = histogram.counts()
        for place, bound in enumerate([*WAIT_BOUNDS_S, math.inf]):
            expected = sum(value <= bound for value in values)
            assert expected == sum(counted["counts"][: place + 1])
        assert sum(values) == pytest.approx(counted["sum"])

    def test_what_was_handed_out_stays_as_it_is(self) -> None:
        """Counting on does not change a copy under way to another process."""
        histogram = Histogram([1.0])
        before = histogram.counts()
        histogram.observe(0.5)
        assert {"bounds": [1.0], "counts": [0, 0], "sum": 0.0} == before


@pytest.mark.parametrize("bounds", [LOAD_BOUNDS_S, STALL_BOUNDS_S, WAIT_BOUNDS_S])
def test_bounds_rise(bounds: tuple[float, ...]) -> None:
    """Each is above the one before, so every bucket can have values."""
    assert sorted(set(bounds)) == list(bounds)


def test_each_fact_has_its_counter() -> None:
    """One of each kind, and nothing else moves."""
    telemetry = Telemetry()
    telemetry.activated("device", 0.002, is_checked=True)
    telemetry.activated("disk", 0.2, is_checked=False)
    telemetry.loaded(0.3)
    telemetry.load_failed()
    telemetry.promoted(0.5)
    telemetry.promoted(0.25)
    telemetry.promotion_failed()
    telemetry.waited(0.0)
    counts = telemetry.counts()
    stalls, load, wait = (
        counts.pop(name) for name in ("activation_stall_seconds", "load_seconds", "wait_seconds")
    )
    assert {"device": 1, "host": 0, "disk": 1} == {s: sum(stalls[s]["counts"]) for s in SOURCES}
    assert (1, 0.3) == (sum(load["counts"]), load["sum"])
    assert (1, 1) == (wait["counts"][0], sum(wait["counts"]))
    assert {
        "load_failures": 1,
        "promotions": 2,
        "promotion_seconds": 0.75,
        "promotion_failures": 1,
        "checks": 1,
    } == counts


def test_counts_cross_the_process_border_unchanged() -> None:
    """vLLM sends them as msgpack."""
    telemetry = Telemetry()
    telemetry.activated("host", 0.002, is_checked=True)
    counts = telemetry.counts()
    assert counts == msgspec.msgpack.decode(msgspec.msgpack.encode(counts))
