"""Which sizes belong together? Exact one-dimensional k-means, and the cut-offs between lanes.

In one dimension an optimal cluster is a run of neighbouring values, so dynamic programming over
"where does the last cluster begin" finds the optimum; that start only moves right as points are
added, which divide and conquer exploits: O(K n log n) for all K up to the largest at once.
"""

from bisect import bisect_left
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from itertools import accumulate, pairwise
from typing import assert_never

from chameleon_lora.errors import ConfigError


class KRule(Enum):
    """How many lanes: which K of 1..max_lanes is taken."""

    ELBOW = "elbow"  # the smallest K after which one more lane hardly helps (ADR 0003)
    MIN_WCSS = "min_wcss"  # the paper's words; in effect the largest K there is


@dataclass(frozen=True, slots=True)
class ClusterSettings:
    """How many lanes there may be and when one more is worth it.

    Attributes:
        max_lanes: the most lanes there may be, >= 1; 1 makes the scheduler first-come first-served. With
            quotas there are no more than the engine has seats.
        elbow_share: share of WCSS(1), within 0..1, that a further lane must take away (ELBOW).

    Raises:
        ConfigError: a value is out of its range.
    """

    max_lanes: int = 4
    rule: KRule = KRule.ELBOW
    elbow_share: float = 0.10

    def __post_init__(self) -> None:
        if self.max_lanes < 1:
            raise ConfigError(
                f"max_lanes is {self.max_lanes}, but must be at least 1; the default is 4"
            )
        if not 0.0 <= self.elbow_share <= 1.0:
            raise ConfigError(
                f"elbow_share is {self.elbow_share}, but must be within 0..1; the default is 0.1"
            )


def lane_of(size: float, cutoffs: Sequence[float]) -> int:
    """The lane a size falls into, 0 for the smallest; a size on a cut-off goes to the lower."""
    return bisect_left(cutoffs, size)


def cutoffs(values: Sequence[float], settings: ClusterSettings) -> tuple[float, ...]:
    """The sizes at which one lane ends and the next begins, ascending; () means one lane.

    Midpoints between neighbouring centroids (paper §4.3). There are never more lanes than
    distinct values. O(n log n) per lane.
    """
    if not values:
        return ()
    centroids = _best_k(_all_clusterings(values, settings.max_lanes), settings)
    return tuple(low + (high - low) / 2 for low, high in pairwise(centroids))


_Clustering = tuple[tuple[float, ...], float]  # centroids and WCSS


def _best_k(clusterings: Sequence[_Clustering], settings: ClusterSettings) -> tuple[float, ...]:
    """The centroids of the clustering that the rule takes; clusterings[i] has i + 1 clusters."""
    match settings.rule:
        case KRule.MIN_WCSS:
            return min(clusterings, key=lambda clustering: clustering[1])[0]
        case KRule.ELBOW:
            worthwhile = settings.elbow_share * clusterings[0][1]
            for (centroids, wcss), (_, next_wcss) in pairwise(clusterings):
                if wcss - next_wcss < worthwhile:
                    return centroids
            return clusterings[-1][0]
        case _:
            assert_never(settings.rule)


def _all_clusterings(values: Sequence[float], max_k: int) -> list[_Clustering]:
    """The best clusterings for K = 1..min(max_k, distinct values), in that order."""
    counts = Counter(values)
    points = sorted(counts)
    weights = [counts[point] for point in points]
    layers = _starts(points, weights, min(max_k, len(points)))
    clusterings = []
    for k in range(1, len(layers) + 1):
        centroids, wcss, end = [], 0.0, len(points)
        for layer in reversed(layers[:k]):
            start = layer[end]
            centroid, squares = _cluster(points[start:end], weights[start:end])
            centroids.append(centroid)
            wcss += squares
            end = start
        clusterings.append((tuple(reversed(centroids)), wcss))
    return clusterings


def _cluster(points: Sequence[float], weights: Sequence[int]) -> tuple[float, float]:
    """Mean and sum of squares of one run of ascending points, in two passes: never negative.

    The mean is taken from the first point on and kept within the run, so that the centroids of
    different runs stay apart whatever is rounded.
    """
    low, high = points[0], points[-1]
    offset = sum(w * (x - low) for x, w in zip(points, weights, strict=True)) / sum(weights)
    mean = min(high, low + offset)
    return mean, sum(w * (x - mean) ** 2 for x, w in zip(points, weights, strict=True))


class _Sums:
    """Running sums up to each point: weight, weighted value, weighted square.

    Values are taken from the middle of their range, so that squares lose little to rounding.
    """

    def __init__(self, points: Sequence[float], weights: Sequence[int]) -> None:
        middle = points[0] + (points[-1] - points[0]) / 2
        pairs = [(x - middle, w) for x, w in zip(points, weights, strict=True)]
        self.weight = list(accumulate((w for _, w in pairs), initial=0))
        self.value = list(accumulate((w * x for x, w in pairs), initial=0.0))
        self.square = list(accumulate((w * x * x for x, w in pairs), initial=0.0))


def _starts(points: Sequence[float], weights: Sequence[int], max_k: int) -> list[list[int]]:
    """layers[k - 1][j]: where the last of k clusters over the first j points begins."""
    sums = _Sums(points, weights)
    ends = range(1, len(points) + 1)
    # cost[j]: least sum of squares of the first j points; nothing splits in the first layer
    cost = [0.0, *(sums.square[j] - sums.value[j] ** 2 / sums.weight[j] for j in ends)]
    layers = [[0] * len(cost)]
    for k in range(2, max_k + 1):
        cost, starts = _one_more_cluster(cost, sums, k)
        layers.append(starts)
    return layers


def _one_more_cluster(cost: list[float], sums: _Sums, k: int) -> tuple[list[float], list[int]]:
    """From the least costs with k - 1 clusters to those with k, and where the last begins."""
    weight, value, square = sums.weight, sums.value, sums.square
    size = len(cost)
    best_cost, best_start = [0.0] * size, [0] * size
    todo = [(k, size, k - 1, size)]  # ends low..high with starts first..last, half-open
    while todo:
        low, high, first, last = todo.pop()
        if low >= high:
            continue
        end = (low + high) // 2
        end_weight, end_value, end_square = weight[end], value[end], square[end]
        least, start = float("inf"), first
        for i in range(first, min(last, end)):
            total = end_value - value[i]
            spread = end_square - square[i] - total * total / (end_weight - weight[i])
            if cost[i] + spread < least:
                least, start = cost[i] + spread, i
        best_cost[end], best_start[end] = least, start
        todo.append((low, end, first, start + 1))
        todo.append((end + 1, high, start, last))
    return best_cost, best_start
