"""Exact one-dimensional k-means and the lanes' cut-offs."""

import math
import random
from collections.abc import Sequence
from fractions import Fraction
from itertools import pairwise, product

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.queues.clusters import (
    ClusterSettings,
    KRule,
    _all_clusterings,
    cutoffs,
    lane_of,
)

GRID = st.integers(0, 64).map(lambda n: n / 64)
SIZES = st.floats(0.0, 1.0, allow_subnormal=False)
THREE_BLOBS = [0.10, 0.11, 0.12, 0.50, 0.51, 0.52, 0.90, 0.91, 0.92]


def kmeans_1d(values: Sequence[float], k: int) -> tuple[tuple[float, ...], float]:
    """Centroids and sum of squares of the best k-clustering, or of one for each distinct value."""
    return _all_clusterings(values, k)[-1]


def least_wcss(values: Sequence[float], k: int) -> Fraction:
    """The least sum of squares over every assignment of values to k clusters, exactly."""
    exact = [Fraction(value) for value in values]
    return min(
        sum(
            (
                squares([x for x, own in zip(exact, owner, strict=True) if own == cluster])
                for cluster in range(k)
            ),
            Fraction(0),
        )
        for owner in product(range(k), repeat=len(values))
    )


def squares(cluster: Sequence[Fraction]) -> Fraction:
    if not cluster:
        return Fraction(0)
    mean = sum(cluster, Fraction(0)) / len(cluster)
    return sum(((x - mean) ** 2 for x in cluster), Fraction(0))


def wcss_to_nearest(values: Sequence[float], centroids: Sequence[float]) -> float:
    return math.fsum(min((value - c) ** 2 for c in centroids) for value in values)


@given(values=st.lists(GRID | SIZES, min_size=1, max_size=5), k=st.integers(1, 3))
def test_kmeans_is_optimal(values: list[float], k: int) -> None:
    """No assignment of the values to k clusters has a lower sum of squares."""
    _, wcss = kmeans_1d(values, k)
    assert float(least_wcss(values, k)) == pytest.approx(wcss, rel=1e-9, abs=1e-15)


@given(values=st.lists(SIZES, min_size=1, max_size=80), k=st.integers(1, 6))
def test_wcss_belongs_to_the_centroids(values: list[float], k: int) -> None:
    """The sum of squares is that of each value to its nearest centroid."""
    centroids, wcss = kmeans_1d(values, k)
    assert wcss_to_nearest(values, centroids) == pytest.approx(wcss, rel=1e-6, abs=1e-12)


@given(values=st.lists(GRID | SIZES, min_size=1, max_size=80), k=st.integers(1, 6))
def test_centroids_ascend_within_the_values(values: list[float], k: int) -> None:
    """There are min(k, distinct values) centroids, strictly ascending, none outside the values."""
    centroids, _ = kmeans_1d(values, k)
    assert len(centroids) == min(k, len(set(values)))
    assert all(low < high for low, high in pairwise(centroids))
    assert min(values) <= centroids[0]
    assert centroids[-1] <= max(values)


@given(
    base=st.sampled_from([0.0, 1.0, 1e6, 1e9]),
    values=st.lists(st.floats(0.0, 1e-6), min_size=1, max_size=40),
)
def test_rounding_never_makes_wcss_negative(base: float, values: list[float]) -> None:
    """Tiny spreads on large values round badly, but sums of squares stay at or above zero."""
    shifted = [base + value for value in values]
    assert all(kmeans_1d(shifted, k)[1] >= 0.0 for k in range(1, 5))


@given(values=st.lists(SIZES, min_size=1, max_size=60))
def test_one_more_cluster_never_hurts(values: list[float]) -> None:
    """The sum of squares falls or stays as clusters are added."""
    sums = [kmeans_1d(values, k)[1] for k in range(1, 6)]
    assert all(after <= before + 1e-12 for before, after in pairwise(sums))


@given(values=st.lists(GRID, min_size=1, max_size=30), rng=st.randoms())
def test_order_of_values_is_irrelevant(values: list[float], rng: random.Random) -> None:
    """A shuffled list has the same cut-offs, bit for bit."""
    shuffled = list(values)
    rng.shuffle(shuffled)
    assert cutoffs(values, ClusterSettings()) == cutoffs(shuffled, ClusterSettings())


def test_nothing_has_no_cutoffs() -> None:
    """No values: one lane."""
    assert cutoffs([], ClusterSettings()) == ()


def test_repeated_values_weigh_their_count() -> None:
    """Three at 0 and one at 1 have their centroid at 0.25."""
    assert kmeans_1d([0.0, 0.0, 0.0, 1.0], 1) == ((0.25,), 0.75)


def test_single_value_is_its_own_centroid_exactly() -> None:
    """Averaging equal values rounds nothing away."""
    assert kmeans_1d([0.1] * 7, 2) == ((0.1,), 0.0)


def test_cutoffs_are_midpoints_between_centroids() -> None:
    """Blobs round 0.11, 0.51 and 0.91 are cut at 0.31 and 0.71 by the elbow."""
    assert cutoffs(THREE_BLOBS, ClusterSettings()) == pytest.approx((0.31, 0.71))


def test_literal_rule_takes_all_lanes() -> None:
    """The least WCSS is that of the most clusters: three blobs make four lanes."""
    literal = ClusterSettings(rule=KRule.MIN_WCSS)
    assert len(cutoffs(THREE_BLOBS, literal)) == 3


def test_elbow_that_asks_for_nothing_takes_all_lanes() -> None:
    """With a share of 0 every lane that helps at all is taken."""
    assert len(cutoffs(THREE_BLOBS, ClusterSettings(elbow_share=0.0))) == 3


def test_lane_that_saves_exactly_the_share_is_taken() -> None:
    """Two sizes in two lanes leave no sum of squares: all of WCSS(1) is saved."""
    assert cutoffs([0.0, 1.0], ClusterSettings(elbow_share=1.0)) == (0.5,)


def test_elbow_stops_at_one_lane() -> None:
    """A share above what two lanes save leaves one lane."""
    assert cutoffs([0.0, 0.5, 1.0], ClusterSettings(elbow_share=0.9)) == ()


@pytest.mark.parametrize("rule", KRule)
def test_one_lane_has_no_cutoffs(rule: KRule) -> None:
    """One lane at most: first come, first served."""
    assert cutoffs(THREE_BLOBS, ClusterSettings(max_lanes=1, rule=rule)) == ()


@pytest.mark.parametrize("rule", KRule)
def test_equal_sizes_make_one_lane(rule: KRule) -> None:
    """Nothing tells equal sizes apart."""
    assert cutoffs([0.3] * 100, ClusterSettings(rule=rule)) == ()


@given(values=st.lists(SIZES, max_size=60), lanes=st.integers(1, 5), rule=st.sampled_from(KRule))
def test_cutoffs_are_ordered_and_few(values: list[float], lanes: int, rule: KRule) -> None:
    """Cut-offs ascend, and make no more lanes than allowed or than there are distinct sizes."""
    cuts = cutoffs(values, ClusterSettings(max_lanes=lanes, rule=rule))
    assert sorted(cuts) == list(cuts)
    assert len(cuts) <= max(0, min(lanes, len(set(values))) - 1)


@given(values=st.lists(GRID, min_size=1, max_size=60))
def test_every_lane_gets_a_size(values: list[float]) -> None:
    """Each lane between cut-offs holds at least one of the sizes that made it."""
    cuts = cutoffs(values, ClusterSettings())
    assert set(range(len(cuts) + 1)) == {lane_of(value, cuts) for value in values}


def test_lane_counts_the_cutoffs_below() -> None:
    """A size on a cut-off goes to the lower lane, one above it to the next."""
    cuts = (0.25, 0.5)
    assert [lane_of(size, cuts) for size in (0.0, 0.25, 0.26, 0.5, 1.0)] == [0, 0, 1, 1, 2]
    assert lane_of(0.7, ()) == 0


def test_no_lane_is_refused() -> None:
    """0 lanes are refused with value, limit and way out."""
    with pytest.raises(ConfigError, match=r"max_lanes is 0.*at least 1.*4"):
        ClusterSettings(max_lanes=0)


@pytest.mark.parametrize("share", [-0.1, 1.1, math.nan])
def test_elbow_share_out_of_range_is_refused(share: float) -> None:
    """A share is within 0..1."""
    with pytest.raises(ConfigError, match=r"elbow_share.*0\.\.1"):
        ClusterSettings(elbow_share=share)
