"""Bootstrap intervals of paired ratios."""

import random
from collections.abc import Sequence

import pytest

from chameleon_lora.compare.intervals import Interval, Pair, paired, percentile_ratio, ratio_of
from chameleon_lora.compare.printed import with_interval
from chameleon_lora.metrics.record import RequestRecord, ttfts_s
from tests.metrics.records import record


def run(ttfts_s: Sequence[float], failed: frozenset[int] = frozenset()) -> list[RequestRecord]:
    """Requests a second apart with these times to first token; some of them failed."""
    return [
        record(i, float(i), (i + ttft_s,), error="refused" if i in failed else None)
        for i, ttft_s in enumerate(ttfts_s)
    ]


def pair(base: Sequence[float], other: Sequence[float]) -> Pair:
    """Two runs of the same requests."""
    return paired(run(base), run(other), ttfts_s)


def sure(interval: Interval | None) -> Interval:
    """The interval, which is there."""
    assert interval is not None
    return interval


def test_twice_as_long_for_every_request_is_a_ratio_of_two_beyond_doubt() -> None:
    """Whatever is drawn, the ratio is 2: the interval has no width."""
    times = [1.0 + i % 7 for i in range(50)]
    found = sure(percentile_ratio([pair(times, [2 * t for t in times])], 99.0))
    assert 1 == found.pairs
    assert [2.0, 2.0, 2.0] == pytest.approx([found.low, found.ratio, found.high])


def test_requests_that_failed_on_either_server_are_left_out() -> None:
    """Of four, the first failed here and the last there."""
    found = paired(
        run([9.0, 1.0, 2.0, 9.0], frozenset({0})), run([1.0] * 4, frozenset({3})), ttfts_s
    )
    assert ([1.0, 2.0], [1.0, 1.0]) == (
        [float(v[0]) for v in found.base],
        [float(v[0]) for v in found.other],
    )


def test_the_interval_holds_the_true_ratio_in_most_repetitions() -> None:
    """Of exponential times, one 1.5 times the other, medians: at least 24 of 30 intervals do."""
    rng = random.Random(1)
    held = 0
    for seed in range(30):
        base = [rng.expovariate(1.0) for _ in range(200)]
        other = [1.5 * rng.expovariate(1.0) for _ in range(200)]
        found = sure(percentile_ratio([pair(base, other)], 50.0, seed))
        assert found.low is not None
        assert found.high is not None
        held += found.low <= 1.5 <= found.high
    assert held >= 24


def test_pairs_that_disagree_widen_the_interval() -> None:
    """All requests of a pair agree on 1, 2 or 4: the median is 2, and draws of pairs reach both ends."""
    times = [1.0 + i % 7 for i in range(50)]
    found = sure(percentile_ratio([pair(times, [k * t for t in times]) for k in (1, 2, 4)], 50.0))
    assert [1.0, 2.0, 4.0] == pytest.approx([found.low, found.ratio, found.high])


def test_the_same_seed_gives_the_same_interval() -> None:
    """Another gives another."""
    rng = random.Random(2)
    pairs = [pair([rng.random() for _ in range(30)], [rng.random() for _ in range(30)])]
    assert percentile_ratio(pairs, 90.0, 5) == percentile_ratio(pairs, 90.0, 5)
    assert percentile_ratio(pairs, 90.0, 5) != percentile_ratio(pairs, 90.0, 6)


def test_pairs_without_values_are_left_out() -> None:
    """Alone they give no ratio."""
    empty = pair([], [])
    assert percentile_ratio([empty], 50.0) is None
    assert 1 == sure(percentile_ratio([empty, pair([1.0, 1.0], [3.0, 3.0])], 50.0)).pairs


def test_figures_of_runs_are_paired_by_place() -> None:
    """2/1, 3/2 and 8/2: the median is 2, within 1.5 and 4."""
    found = sure(ratio_of([1.0, 2.0, 2.0], [2.0, 3.0, 8.0]))
    assert (2.0, 1.5, 4.0, 3) == (found.ratio, found.low, found.high, found.pairs)


def test_a_base_of_nothing_has_no_ratio() -> None:
    """A base of 0 in one pair leaves the other; in all, none."""
    assert 1 == sure(ratio_of([0.0, 2.0], [1.0, 2.0])).pairs
    assert ratio_of([0.0], [1.0]) is None


def test_one_pair_of_figures_has_no_interval() -> None:
    """There is nothing else to draw: an interval of no width would be a verdict from one run."""
    assert Interval(2.0, None, None, 1) == ratio_of([1.0], [2.0])
    assert "2.00 (one repeat: no interval)" == with_interval(2.0, None, None)


def test_over_a_base_of_nought_there_is_no_ratio() -> None:
    """Tokens that all came at once have gaps of 0 s; nothing is a number of times as long."""
    still = pair([0.0] * 4, [1.0] * 4)
    assert None is percentile_ratio([still], 99.0)
