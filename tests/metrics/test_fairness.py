"""Do some adapters wait longer than others?"""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.metrics.fairness import LEAST_REQUESTS, fairness, jain
from chameleon_lora.metrics.record import RequestRecord
from tests.metrics.records import record


def answers(adapter: str | None, ttft_s: float, count: int = LEAST_REQUESTS) -> list[RequestRecord]:
    """So many requests with the same time to first token."""
    return [replace(record(i, 0.0, (ttft_s,)), adapter=adapter) for i in range(count)]


@pytest.mark.parametrize(
    ("values", "expected"),
    [([3.0], 1.0), ([2.0, 2.0, 2.0], 1.0), ([1.0, 0.0, 0.0, 0.0], 0.25), ([1.0, 3.0], 0.8)],
)
def test_jains_index_of_few_numbers(values: list[float], expected: float) -> None:
    """Alike is 1, one who has all of four is 1/4, and 1 and 3 are 16 / (2 * 10)."""
    assert jain(values) == pytest.approx(expected)


def test_nobody_waiting_is_fair() -> None:
    """All zeros are all alike."""
    assert 1.0 == jain([0.0, 0.0])


@given(st.lists(st.floats(0.001, 1e6), min_size=1, max_size=20), st.floats(0.001, 1e3))
def test_jains_index_has_bounds_and_no_unit(values: list[float], factor: float) -> None:
    """Between 1/n and 1, and the same in seconds and in milliseconds."""
    index = jain(values)
    assert 1.0 / len(values) - 1e-9 <= index <= 1.0 + 1e-9
    assert jain([value * factor for value in values]) == pytest.approx(index)


def test_the_worst_adapter_is_named() -> None:
    """P99 of 1, 2 and 6 s: the worst is three times the median one."""
    found = fairness([*answers("a", 1.0), *answers("b", 6.0), *answers("c", 2.0)])
    assert found is not None
    assert (3, "b", 3.0) == (found.adapters, found.worst, found.worst_over_median)
    assert found.jain_ttft == pytest.approx(81.0 / (3 * 41.0))


def test_adapters_with_few_answers_are_not_compared() -> None:
    """One short of the least, or the base model: neither is among those compared."""
    few = answers("few", 99.0, LEAST_REQUESTS - 1)
    found = fairness([*answers("a", 1.0), *answers("b", 1.0), *few, *answers(None, 50.0)])
    assert found is not None
    assert (2, 1.0) == (found.adapters, found.worst_over_median)


def test_failed_requests_do_not_make_an_adapter_comparable() -> None:
    """One short of the least are completed, five more failed: only the former count."""
    few = answers("b", 1.0, LEAST_REQUESTS - 1)
    failed = [replace(row, error="refused") for row in answers("b", 1.0)]
    assert fairness([*answers("a", 1.0), *few, *failed]) is None


def test_one_adapter_is_compared_with_none() -> None:
    """There is nothing to be fair to."""
    assert fairness(answers("a", 1.0)) is None
    assert fairness([]) is None
