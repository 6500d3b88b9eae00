"""A trace in numbers."""

import random
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.arrivals import gamma_arrivals, poisson_arrivals
from chameleon_lora.workload.describe import Burstiness, describe, fitted_alpha, moved_share
from chameleon_lora.workload.named_adapters import named_adapters
from chameleon_lora.workload.popularity import draw_ranks, power_law_shares
from chameleon_lora.workload.requests import WorkloadSpec, make_workload
from chameleon_lora.workload.trace import TraceRow, read_trace


def at(times_s: Sequence[float]) -> list[TraceRow]:
    """Requests at these times."""
    return [TraceRow(time_s, None, 1, 1) for time_s in times_s]


def naming(*names: str | None) -> list[TraceRow]:
    """Requests that name these adapters, a second apart."""
    return [TraceRow(float(index), name, 1, 1) for index, name in enumerate(names)]


def test_percentiles_are_numpys() -> None:
    """Linear between neighbours; mean and maximum beside them."""
    tokens = [(n * n, 2 * n) for n in range(1, 42)]
    summary = describe([TraceRow(0.0, None, *pair) for pair in tokens])
    inputs = [pair[0] for pair in tokens]
    spread = summary.input_tokens
    assert np.percentile(inputs, [50, 90, 95, 99]).tolist() == [
        spread.p50,
        spread.p90,
        spread.p95,
        spread.p99,
    ]
    assert (42.0, 82.0) == (summary.output_tokens.mean, summary.output_tokens.max)


def test_even_arrivals_do_not_vary() -> None:
    """One a second for three minutes: no gap differs, no minute is busier."""
    summary = describe(at([float(second) for second in range(181)]))
    assert (181, 180.0, 1.0) == (summary.requests, summary.duration_s, summary.rate_per_s)
    assert Burstiness(0.0, 0.0, 1.0) == summary.burstiness


def test_poisson_arrivals_have_one_of_each() -> None:
    """Gaps vary by 1, and counts of a minute are as variable as their mean."""
    burstiness = describe(at(poisson_arrivals(1.0, 60_000.0, random.Random(1)))).burstiness
    assert pytest.approx(1.0, abs=0.02) == burstiness.gap_cv
    assert pytest.approx(1.0, abs=0.15) == burstiness.count_dispersion


def test_bursts_show_in_gaps_and_in_minutes() -> None:
    """Gaps of CV 4 disperse counts toward CV^2."""
    burstiness = describe(at(gamma_arrivals(5.0, 20_000.0, 4.0, random.Random(2)))).burstiness
    assert pytest.approx(4.0, rel=0.05) == burstiness.gap_cv
    assert pytest.approx(16.0, rel=0.2) == burstiness.count_dispersion


def test_minutes_without_requests_count() -> None:
    """Counts 3, 0, 0 and 1 (at 180 s, in no whole minute): mean 1, variance 3, peak 3."""
    burstiness = describe(at([0.0, 1.0, 2.0, 180.0])).burstiness
    assert pytest.approx((3.0, 3.0)) == (burstiness.count_dispersion, burstiness.peak_to_mean)


def test_a_trace_may_span_ages() -> None:
    """Memory does not grow with the minutes in between."""
    assert describe(at([0.0, 1.0, 1e15])).burstiness.peak_to_mean is not None


def test_what_cannot_be_told_is_none() -> None:
    """One request, or many at once, have no rate and no burstiness."""
    for rows in (at([5.0]), at([0.0, 0.0, 0.0])):
        summary = describe(rows)
        assert summary.rate_per_s is None
        assert Burstiness(None, None, None) == summary.burstiness
        assert summary.adapters is None


def test_no_rows_are_refused() -> None:
    """There is nothing to describe."""
    with pytest.raises(ConfigError, match="trace of 0 requests"):
        describe([])


def test_adapters_are_counted() -> None:
    """Two adapters; a fifth of the requests names none, and three in four of the rest the first."""
    use = describe(naming("a", "a", None, "b", "a")).adapters
    assert use is not None
    assert (2, 0.75) == (use.count, use.top_share)
    assert pytest.approx(0.2) == use.base_share


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.46, 2.0])
def test_the_fit_finds_the_exponent(alpha: float) -> None:
    """20,000 draws from 100 adapters give it back to 0.05."""
    drawn = draw_ranks(power_law_shares(100, alpha), 20_000, random.Random(3))
    counts = sorted((drawn.count(rank) for rank in set(drawn)), reverse=True)
    assert pytest.approx(alpha, abs=0.05) == fitted_alpha(counts)


def test_the_fit_of_equal_counts_is_zero() -> None:
    """The least exponent there is; one adapter has none."""
    assert pytest.approx(0.0, abs=1e-5) == fitted_alpha([7, 7, 7])
    assert fitted_alpha([7]) is None


def test_moved_share_is_what_changed_hands() -> None:
    """Nothing, a third, all."""
    assert 0.0 == moved_share("ab", "ba")
    assert pytest.approx(1 / 3) == moved_share("aab", "abb")
    assert pytest.approx(1.0) == moved_share("aa", "bcd")


def test_drift_stands_out_from_chance() -> None:
    """A workload whose popularity moved on by five places has it, one that did not has none."""
    for shift_s, least, most in ((20.0, 0.3, 1.0), (1e9, 0.0, 0.12)):
        spec = WorkloadSpec(20.0, 200.0, alpha=1.0, shift_s=shift_s)
        requests = make_workload(spec, named_adapters(20), 4)
        use = describe([TraceRow(r.arrival_s, r.adapter, 1, 1) for r in requests]).adapters
        assert use is not None
        assert use.drift is not None
        assert use.drift_by_chance is not None
        assert least < use.drift < most
        assert use.drift_by_chance < 0.12


def test_a_recorded_trace_is_described_as_numpy_does(data_dir: Path) -> None:
    """1,000 requests of the Azure trace: 216 s, CV 1.245; medians and P95 of both lengths."""
    summary = describe(read_trace(data_dir / "azure2023_conv_first.csv.gz"))
    assert (1_000, 216.03) == (summary.requests, round(summary.duration_s, 2))
    assert pytest.approx(1.245, abs=0.001) == summary.burstiness.gap_cv
    spreads = (summary.input_tokens, summary.output_tokens)
    assert [(999.0, 4080.0), (203.0, 451.15)] == [
        (each.p50, round(each.p95, 2)) for each in spreads
    ]
