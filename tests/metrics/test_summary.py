"""A run's figures, on three numbers each."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.metrics.summary import percentile, ratio, spread, summarise
from tests.metrics.records import record


@pytest.mark.parametrize(("percent", "expected"), [(0, 1.0), (25, 1.5), (50, 2.0), (100, 6.0)])
def test_percentiles_of_three_numbers(percent: float, expected: float) -> None:
    """6, 1, 2: the least, half way to the middle, the middle, the greatest."""
    assert percentile([6.0, 1.0, 2.0], percent) == pytest.approx(expected)


@given(st.lists(st.floats(0.0, 1e6), min_size=1, max_size=40), st.floats(0.0, 100.0))
def test_percentile_agrees_with_numpy(values: list[float], percent: float) -> None:
    """The rule is numpy's default, for any values."""
    assert percentile(values, percent) == pytest.approx(float(np.percentile(values, percent)))


def test_spread_of_three_times() -> None:
    """1, 2, 6: mean 3, middle 2, 98 % of the way from 2 to 6 is 5.92."""
    found = spread([6.0, 1.0, 2.0])
    assert found is not None
    assert (found.count, found.mean_s, found.p50_s, found.max_s) == (3, 3.0, 2.0, 6.0)
    assert found.p99_s == pytest.approx(5.92)


def test_nothing_has_no_spread() -> None:
    """No values, no mean."""
    assert spread([]) is None


def test_rates_count_completed_requests_over_the_whole_run() -> None:
    """Two answers of 3 and 2 tokens, the last at 5 s: 0.4 requests/s and 1 token/s."""
    summary = summarise([record(0, 0.0, (1.0, 2.0, 3.0)), record(1, 1.0, (4.0, 5.0))])
    assert (summary.requests_per_s, summary.output_tokens_per_s) == pytest.approx((0.4, 1.0))


def test_failed_requests_lend_no_latency() -> None:
    """A request that broke off after a token is counted as failed and nowhere else."""
    summary = summarise([record(0, 0.0, (1.0, 2.0)), record(1, 0.0, (9.0, 10.0), error="broken")])
    assert (summary.requests, summary.completed, summary.failed) == (2, 1, 1)
    assert summary.ttft == spread([1.0])
    assert summary.token_gap == spread([1.0])


def test_slo_share_counts_failures_as_late() -> None:
    """TTFTs of 1, 2 and 3 s against 2 s, and one failure: two of four in time."""
    records = [record(i, 0.0, (t,)) for i, t in enumerate((1.0, 2.0, 3.0))]
    summary = summarise([*records, record(3, 0.0, (), error="refused")], slo_s=2.0)
    assert summary.slo_share == 0.5


def test_without_a_limit_there_is_no_slo_share() -> None:
    """No limit, no share."""
    assert summarise([record(0, 0.0, (1.0,))]).slo_share is None


def test_the_clients_worst_delay_is_told() -> None:
    """Sent 0.5 s and 0.25 s late: 0.5."""
    records = [record(0, 0.0, (1.0,), sent_s=0.5), record(1, 0.0, (1.0,), sent_s=0.25)]
    assert summarise(records).max_lateness_s == 0.5


@pytest.mark.parametrize(
    ("base", "other", "expected"), [(4.0, 1.0, 0.25), (0.0, 1.0, None), (None, 1.0, None)]
)
def test_ratio_of_two_figures(
    base: float | None, other: float | None, expected: float | None
) -> None:
    """The other over the base; nothing over a base of nothing."""
    assert expected == ratio(base, other)
