"""The search for the highest load within an objective."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.metrics.summary import Spread
from chameleon_lora.planning.sustained import sustained_rate
from chameleon_lora.sim.figures import SimFigures


def spread(seconds: float) -> Spread:
    """All alike."""
    return Spread(1, seconds, seconds, seconds, seconds, seconds)


def at(ttft_s: float, gap_s: float = 0.0) -> SimFigures:
    """The figures of a run with these times."""
    return SimFigures(
        requests=1, failed=0, ttft=spread(ttft_s), latency=spread(ttft_s), gap=spread(gap_s),
        per_token=None, queue_share=0.0, requests_per_s=1.0, output_tokens_per_s=1.0, hit_share=1.0,
        load=None, link_share=0.0, held_share=0.0, used_share=0.0, preemptions=0, squashes=0,
    )  # fmt: skip


@given(threshold=st.floats(0.01, 1e4), start=st.floats(0.01, 1e4))
def test_finds_the_threshold_from_wherever_it_starts(threshold: float, start: float) -> None:
    """P99 TTFT is the load over the threshold: the answer is within 3 % below it, and was tried."""
    found = sustained_rate(lambda rate: at(rate / threshold), 1.0, start)
    assert 0.97 * threshold <= found.rate_per_s <= threshold
    assert found.figures is not None
    assert (found.rate_per_s, found.figures.ttft.p99_s) in found.tried
    assert sorted(found.tried) == list(found.tried)


def test_a_near_start_takes_few_runs() -> None:
    """From half the threshold: two steps up and four to halve."""
    found = sustained_rate(lambda rate: at(rate / 10.0), 1.0, 5.0)
    assert len(found.tried) <= 9


def test_no_load_is_run_twice() -> None:
    """Each run may take seconds."""
    seen: list[float] = []

    def run(rate: float) -> SimFigures:
        seen.append(rate)
        return at(rate)

    sustained_rate(run, 1.0, 3.0)
    assert len(seen) == len(set(seen))


def test_nothing_is_sustained_where_the_least_load_misses() -> None:
    """An adapter's copy alone takes longer than the objective."""
    found = sustained_rate(lambda _: at(2.0), 1.0, 1.0)
    assert (0.0, None) == (found.rate_per_s, found.figures)


def test_a_finer_tolerance_comes_nearer() -> None:
    """A thousandth."""
    found = sustained_rate(lambda rate: at(rate / 7.0), 1.0, 1.0, 0.001)
    assert 7.0 == pytest.approx(found.rate_per_s, rel=0.001)


def test_times_between_tokens_may_bind_too() -> None:
    """First tokens in time up to 100, gaps up to 40."""
    found = sustained_rate(lambda rate: at(rate / 100.0, rate / 40.0), 1.0, 1.0, gap_slo_s=1.0)
    assert 40.0 == pytest.approx(found.rate_per_s, rel=0.03)
