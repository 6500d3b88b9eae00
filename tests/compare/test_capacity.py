"""The estimate of a server's capacity."""

from dataclasses import replace

import pytest

from chameleon_lora.compare.arm_run import capacity_from
from chameleon_lora.errors import BenchError
from tests.metrics.records import record


def test_two_seats_that_take_a_second_complete_two_a_second() -> None:
    """Six requests of 1 s on two seats end in pairs at 1, 2, 3 s.

    Until 2 s all seats are taken, four are done and the last two count half: 5 / 2 = 2.5, which is
    above the true 2 by half a round.
    """
    records = [record(i, 0.0, (1.0 + i // 2,)) for i in range(6)]
    assert capacity_from(records, seats=2) == pytest.approx(2.5)


def test_estimate_nears_the_truth_with_more_requests() -> None:
    """200 requests of 1 s on two seats, staggered by half a second: 2 a second within 1 %."""
    records = [record(i, 0.0, (1.0 + i / 2.0,)) for i in range(200)]
    assert capacity_from(records, seats=2) == pytest.approx(2.0, rel=0.01)


def test_a_slow_end_does_not_count() -> None:
    """The last two of six end late, on seats that stand half empty: the estimate stays."""
    records = [record(i, 0.0, (1.0 + i // 2,)) for i in range(6)]
    late = [*records[:4], *(replace(r, end_s=50.0) for r in records[4:])]
    assert capacity_from(records, seats=2) == capacity_from(late, seats=2)


def test_a_failed_probe_request_is_an_error_with_its_reason() -> None:
    """A capacity of failures would be nonsense."""
    records = [record(0, 0.0, (1.0,)), record(1, 0.0, (), error="HTTP 500")]
    with pytest.raises(BenchError, match="request 1 of the capacity probe failed: HTTP 500"):
        capacity_from(records, seats=1)


def test_too_few_requests_are_refused() -> None:
    """Two requests cannot fill two seats and leave one waiting."""
    records = [record(i, 0.0, (1.0,)) for i in range(2)]
    with pytest.raises(BenchError, match="2 requests cannot fill 2 seats"):
        capacity_from(records, seats=2)
