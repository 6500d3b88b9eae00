"""Failed requests counted by cause."""

from dataclasses import replace

import pytest

from chameleon_lora.metrics.errors import Cause, ErrorCount, by_cause, cause_of
from tests.metrics.records import record


def test_a_run_without_failures_has_no_causes() -> None:
    """One completed request: nothing to count."""
    assert () == by_cause([record(0, 0.0, (1.0,))])


def test_failures_are_counted_most_frequent_first() -> None:
    """Two refusals before one lost connection, each with the first error as example."""
    records = [
        record(0, 0.0, (), error="connection lost: reset by peer"),
        record(1, 0.0, (), error="connection refused: port 1"),
        record(2, 0.0, (), error="connection refused: port 2"),
        record(3, 0.0, (1.0,)),
    ]
    expected = (
        ErrorCount("connection refused", 2, "connection refused: port 1", ("a",)),
        ErrorCount("connection lost", 1, "connection lost: reset by peer", ("a",)),
    )
    assert expected == by_cause(records)


def test_http_errors_are_told_apart_by_status() -> None:
    """Each once: then the names decide."""
    records = [record(i, 0.0, (), error=f"HTTP {s} for 'a': no") for i, s in enumerate((500, 404))]
    assert ["HTTP 404", "HTTP 500"] == [count.cause for count in by_cause(records)]


def test_adapters_that_failed_are_named_once_each() -> None:
    """Requests for y, x, y and the base model: x and y."""
    failed = record(0, 0.0, (), error="HTTP 404 for 'x': no such model")
    records = [replace(failed, index=i, adapter=name) for i, name in enumerate("yxy")]
    (count,) = by_cause([*records, replace(failed, index=3, adapter=None)])
    assert (4, ("x", "y")) == (count.count, count.adapters)


@pytest.mark.parametrize("cause", [cause for cause in Cause if cause is not Cause.HTTP])
def test_a_cause_is_found_again_in_its_error(cause: Cause) -> None:
    """Whatever the detail, colons included."""
    assert cause.value == cause_of(cause.error("port 1: no one there"))


@pytest.mark.parametrize("error", ["", "HTTP 40", "a new kind: of error", "connection refused by"])
def test_an_error_of_no_known_cause_is_another(error: str) -> None:
    """Records of other tools may say anything."""
    assert "other" == cause_of(error)
