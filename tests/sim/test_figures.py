"""A run in numbers, against the same numbers from plain lists."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.metrics.summary import spread
from chameleon_lora.sim.figures import SimFigures, _weighted, figures, queue_share
from chameleon_lora.sim.outcome import Found, SimOutcome, SimRecord
from chameleon_lora.sim.run import simulate
from chameleon_lora.workload.requests import TimedRequest
from tests.sim.setups import ANY, ONE_SEAT, profile, requests, setup


def nearest(values: list[float], percent: float) -> float:
    """The least value that so many percent of the values do not exceed."""
    ordered = sorted(values)
    return ordered[max(0, math.ceil(len(ordered) * percent / 100) - 1)]


def record(
    arrival_s: float,
    admitted_s: float,
    first_s: float,
    end_s: float | None,
    found: Found = Found.NONE,
    output: int = 5,
) -> SimRecord:
    """A request that ended, or failed."""
    request = TimedRequest(0, arrival_s, None, 10, output)
    made = SimRecord(request, admitted_s, first_s, end_s, found=found)
    if end_s is None:
        made.admitted_s = made.first_s = None
    return made


def of(*records: SimRecord, warm_up_s: float = 0.0, slo_s: float | None = None) -> SimFigures:
    """The figures of these, in a run of 20 s."""
    return figures(SimOutcome(list(records), duration_s=20.0), warm_up_s, slo_s)


@given(st.lists(st.tuples(st.sampled_from((0.1, 0.2, 0.5, 3.0)), st.integers(1, 9)), max_size=9))
def test_weighted_spread_is_that_of_the_list_written_out(gaps: list[tuple[float, int]]) -> None:
    """Each value as often as it stands for."""
    values = [gap_s for gap_s, count in gaps for _ in range(count)]
    found = _weighted(gaps)
    if not values:
        assert found is None
        return
    assert found is not None
    assert len(values) == found.count
    assert sum(values) / len(values) == pytest.approx(found.mean_s)
    percentiles = (nearest(values, 50), nearest(values, 90), nearest(values, 99))
    assert percentiles == (found.p50_s, found.p90_s, found.p99_s)
    assert max(values) == found.max_s


def test_no_gaps_have_no_spread() -> None:
    """Neither of an empty list nor of values that stand for none."""
    assert _weighted([]) is None
    assert _weighted([(0.3, 0)]) is None


def test_times_of_those_that_ended() -> None:
    """From arrival to the first token, and to the last."""
    found = of(record(1.0, 2.0, 3.0, 6.0), record(4.0, 4.0, 4.5, 5.0))
    assert (2, 0) == (found.requests, found.failed)
    assert spread([2.0, 0.5]) == found.ttft
    assert 1.25 == found.ttft.mean_s
    assert 3.0 == found.latency.mean_s


def test_what_arrived_before_the_warm_up_is_left_out() -> None:
    """It ran, but is in no figure."""
    found = of(record(1.0, 2.0, 9.0, 9.5), record(4.0, 4.0, 4.5, 5.0), warm_up_s=2.0)
    assert (1, 0.5) == (found.requests, found.ttft.max_s)


def test_rates_are_of_the_time_after_the_warm_up() -> None:
    """Two requests of 5 and 7 tokens in 16 s."""
    found = of(record(4.0, 4.0, 5.0, 6.0), record(5.0, 6.0, 7.0, 8.0, output=7), warm_up_s=4.0)
    assert (2 / 16, 12 / 16) == (found.requests_per_s, found.output_tokens_per_s)


def test_failed_requests_count_as_late() -> None:
    """Of three, one is in time: a third, though only two ended."""
    failed = record(1.0, 0.0, 0.0, None)
    found = of(failed, record(1.0, 1.0, 1.5, 2.0), record(1.0, 1.0, 4.0, 5.0), slo_s=1.0)
    assert (3, 1, 1 / 3) == (found.requests, found.failed, found.slo_share)
    assert of(record(1.0, 1.0, 1.5, 2.0)).slo_share is None


def test_hits_are_of_requests_that_name_an_adapter() -> None:
    """In use and on the device are hits, on the link and in host memory misses."""
    found = of(*(record(1.0, 1.0, 2.0, 3.0, where) for where in Found))
    assert 0.5 == found.hit_share
    assert 1.0 == of(record(1.0, 1.0, 2.0, 3.0)).hit_share


def test_waits_are_of_those_that_did_not_find_theirs() -> None:
    """0.2 and 0.4 s over two misses; a hit that waited for its slot is no load."""
    records = [
        record(1.0, 1.0, 2.0, 3.0, where) for where in (Found.HOST, Found.LINK, Found.DEVICE)
    ]
    for item, load_s in zip(records, (0.2, 0.4, 9.0), strict=True):
        item.load_s = load_s
    found = of(*records)
    assert found.load is not None
    assert (2, 0.4) == (found.load.count, found.load.max_s)
    assert of(record(1.0, 1.0, 2.0, 3.0)).load is None


def test_queue_share_is_waiting_over_all_time() -> None:
    """1 s of 5 and none of 1 s: a sixth."""
    assert 1 / 6 == queue_share([record(1.0, 2.0, 3.0, 6.0), record(4.0, 4.0, 4.5, 5.0)])
    assert 0.0 == queue_share([])


def test_time_per_token_is_after_the_first() -> None:
    """3 s for four more tokens; a request of one token has none."""
    found = of(record(1.0, 2.0, 3.0, 6.0), record(1.0, 2.0, 3.0, 3.0, output=1))
    assert found.per_token is not None
    assert (1, 0.75) == (found.per_token.count, found.per_token.mean_s)


def test_memory_and_link_are_shares_of_the_run() -> None:
    """Of a simulated run: within 0 and 1, the link as long as it copied."""
    made = setup(profile(ANY, link_s=0.05), ONE_SEAT, ranks=(8, 8))
    outcome = simulate(made, requests((0.0, "a0", 10, 9), (0.1, "a1", 10, 9), (0.2, "a0", 10, 9)))
    found = figures(outcome)
    assert 3 * 8 * 0.05 / outcome.duration_s == pytest.approx(found.link_share)
    assert 0.0 < found.used_share < 1.0
    assert 0.0 == found.held_share
    assert found.gap is not None
    assert 3 * 8 == found.gap.count
