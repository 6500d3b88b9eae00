"""The busiest second of a run."""

from dataclasses import replace

from chameleon_lora.metrics.peaks import Peaks, peaks
from tests.metrics.records import record


def test_seconds_begin_with_the_first_request_sent() -> None:
    """Sent at 10.5: tokens at 11.0 and 11.4 fall in the first second, at 11.6 in the second one."""
    assert Peaks(2, 1) == peaks([record(0, 10.5, (11.0, 11.4, 11.6))])


def test_a_request_counts_in_every_second_it_touches() -> None:
    """0 to 2.5 s and 2.2 to 3 s meet in the third second; 0.1 to 0.2 s meets the first alone."""
    rows = [record(0, 0.0, (2.5,)), record(1, 2.2, (3.0,)), record(2, 0.1, (0.2,))]
    assert 2 == peaks(rows).requests
    assert 1 == peaks(rows[:1]).requests


def test_only_completed_requests_count() -> None:
    """A failed one's tokens went nowhere; an empty run has no busiest second."""
    assert Peaks(0, 0) == peaks([replace(record(0, 0.0, (1.0,)), error="broken")])
    assert Peaks(0, 0) == peaks([])
