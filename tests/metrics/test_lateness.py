"""Whether the client itself was in time."""

import pytest

from chameleon_lora.metrics.lateness import lateness
from tests.metrics.records import record


def test_a_run_without_requests_has_no_lateness() -> None:
    """Nothing was to be sent."""
    assert lateness([]) is None


def test_lateness_is_of_all_requests_failed_ones_too() -> None:
    """Late by 1, 2 and 9 ms, the last of them failed."""
    late = lateness(
        [
            record(0, 1.0, (2.0,), sent_s=1.001),
            record(1, 2.0, (3.0,), sent_s=2.002),
            record(2, 3.0, (), sent_s=3.009, error="connection lost"),
        ]
    )
    assert late is not None
    assert pytest.approx((0.002, 0.009)) == (late.p50_s, late.max_s)
    assert not late.has_fallen_behind


@pytest.mark.parametrize(("late_requests", "expected"), [(1, False), (4, True)])
def test_a_run_falls_behind_by_its_99th_percentile(late_requests: int, expected: bool) -> None:
    """Of 200 requests one second late, one is an accident, four are not."""
    sent_s = [1.0] * late_requests + [0.0] * (200 - late_requests)
    late = lateness([record(i, 0.0, (2.0,), sent_s=at_s) for i, at_s in enumerate(sent_s)])
    assert late is not None
    assert expected is late.has_fallen_behind


def test_exactly_the_limit_is_in_time() -> None:
    """50 ms are, by a limit of 50 ms."""
    late = lateness([record(0, 0.0, (2.0,), sent_s=0.05)], limit_s=0.05)
    assert late is not None
    assert not late.has_fallen_behind
