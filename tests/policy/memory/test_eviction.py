"""What each keep rule prefers."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.memory.eviction import (
    GDSF_FIXED_BYTES,
    Evictor,
    KeepRule,
    KeepWeights,
)
from tests.policy.engine_model import adapter

SMALL, LARGE = 16 << 20, 256 << 20
WEIGHTS = KeepWeights()


def entry(
    number: int,
    nbytes: int = SMALL,
    last_use_s: float = 0.0,
    use_count: int = 1,
    inflation: float = 0.0,
) -> Entry:
    return Entry(
        adapter(number, nbytes),
        last_use_s=last_use_s,
        inflation=inflation,
        uses_s=[last_use_s] * use_count,
    )


def keep_score(entries: list[Entry], rule: KeepRule, weights: KeepWeights) -> list[float]:
    """What each is worth when every use counts."""
    return Evictor(rule, weights, math.inf).keep_score(entries, 0.0)


def victim(entries: list[Entry], rule: KeepRule, weights: KeepWeights) -> Entry:
    """Who goes when one has to go."""
    return Evictor(rule, weights, math.inf).cheapest(entries, 1, lambda _: 1, 0.0)[0]


def naive_chameleon(entries: list[Entry], weights: KeepWeights) -> list[float]:
    """F * frequency + R * recency + S * size, one entry and one term at a time."""
    values = []
    for c in entries:
        frequency = len(c.uses_s) / (max(len(o.uses_s) for o in entries) or 1)
        size = c.adapter.nbytes / max(o.adapter.nbytes for o in entries)
        oldest_s = min(o.last_use_s for o in entries)
        newest_s = max(o.last_use_s for o in entries)
        recency = (c.last_use_s - oldest_s) / ((newest_s - oldest_s) or 1.0)
        values.append(
            weights.frequency * frequency + weights.recency * recency + weights.size * size
        )
    return values


@given(
    entries=st.lists(
        st.builds(
            entry,
            number=st.integers(0, 99),
            nbytes=st.integers(1, 2**32),
            last_use_s=st.floats(0, 1e6),
            use_count=st.integers(0, 1000),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_chameleon_equals_the_definition(entries: list[Entry]) -> None:
    """Values equal the formula term by term, and stay within 0 and the sum of the weights."""
    actual = keep_score(entries, KeepRule.CHAMELEON, WEIGHTS)
    assert naive_chameleon(entries, WEIGHTS) == pytest.approx(actual)
    assert all(0.0 <= value <= 1.0 + 1e-12 for value in actual)


def test_chameleon_evicts_the_small_of_equally_used() -> None:
    """A miss on a large adapter costs more, so the small one goes."""
    large, small = entry(1, LARGE), entry(2, SMALL)
    assert victim([large, small], KeepRule.CHAMELEON, WEIGHTS) == small


def test_chameleon_evicts_the_unpopular_of_equal_size() -> None:
    """Of one size, the less used goes, though it was used last."""
    popular = entry(1, last_use_s=0.0, use_count=10)
    unpopular = entry(2, last_use_s=9.0, use_count=1)
    assert victim([popular, unpopular], KeepRule.CHAMELEON, WEIGHTS) == unpopular


def test_weights_shift_the_choice() -> None:
    """With recency alone, the longest unused goes, whatever its size and uses."""
    old = entry(1, LARGE, last_use_s=0.0, use_count=9)
    new = entry(2, SMALL, last_use_s=1.0, use_count=0)
    assert victim([old, new], KeepRule.CHAMELEON, WEIGHTS) == new
    recency_only = KeepWeights(frequency=0.0, recency=1.0, size=0.0)
    assert victim([old, new], KeepRule.CHAMELEON, recency_only) == old


def test_fair_share_weighs_recency_like_the_rest() -> None:
    """An adapter ahead in recency but behind in size stays, which CHAMELEON decides otherwise."""
    recent, large = entry(1, SMALL, last_use_s=9.0), entry(2, 2 * SMALL, last_use_s=0.0)
    assert victim([recent, large], KeepRule.FAIR_SHARE, WEIGHTS) == large
    assert victim([recent, large], KeepRule.CHAMELEON, WEIGHTS) == recent


def test_fair_share_ignores_the_weights() -> None:
    """Equal weights are equal whatever is set."""
    entries = [entry(1, LARGE), entry(2, SMALL, last_use_s=5.0, use_count=3)]
    lopsided = KeepWeights(frequency=0.0, recency=0.0, size=1.0)
    expected = keep_score(entries, KeepRule.FAIR_SHARE, WEIGHTS)
    assert expected == keep_score(entries, KeepRule.FAIR_SHARE, lopsided)


def test_lru_evicts_the_longest_unused() -> None:
    """Only the time of the last use counts."""
    old = entry(1, LARGE, last_use_s=1.0, use_count=99)
    new = entry(2, SMALL, last_use_s=2.0, use_count=0)
    assert victim([new, old], KeepRule.LRU, WEIGHTS) == old


def test_lfu_evicts_the_least_used() -> None:
    """Only the uses count while they differ."""
    often = entry(1, SMALL, last_use_s=0.0, use_count=3)
    seldom = entry(2, LARGE, last_use_s=9.0, use_count=2)
    assert victim([often, seldom], KeepRule.LFU, WEIGHTS) == seldom


def test_lfu_evicts_the_longest_unused_of_equally_used() -> None:
    """Of equal uses, the longer unused goes."""
    new, old = entry(1, last_use_s=9.0), entry(2, last_use_s=0.0)
    assert victim([new, old], KeepRule.LFU, WEIGHTS) == old


def test_gdsf_value_is_inflation_plus_uses_times_cost_by_size() -> None:
    """An adapter as large as the fixed cost costs 2 a byte: 5 + 3 * 2."""
    one = entry(1, GDSF_FIXED_BYTES, use_count=3, inflation=5.0)
    assert keep_score([one], KeepRule.GDSF, WEIGHTS) == [11.0]


def test_gdsf_evicts_the_large_of_equally_used() -> None:
    """Reloading a byte of a large adapter is cheaper, so it goes: the opposite of CHAMELEON."""
    large, small = entry(1, LARGE), entry(2, SMALL)
    assert victim([large, small], KeepRule.GDSF, WEIGHTS) == large


def test_gdsf_ages_old_popularity() -> None:
    """A once popular adapter goes when the clock has passed what its uses earned."""
    faded, fresh = entry(1, use_count=5, inflation=0.0), entry(2, use_count=1, inflation=20.0)
    assert victim([faded, fresh], KeepRule.GDSF, WEIGHTS) == faded


@given(
    entries=st.lists(
        st.builds(
            entry,
            number=st.integers(0, 99),
            nbytes=st.integers(1, 2**32),
            last_use_s=st.floats(0, 1e6),
            use_count=st.integers(0, 1000),
        ),
        min_size=1,
        max_size=12,
    )
)
def test_density_orders_by_uses_per_byte(entries: list[Entry]) -> None:
    """More uses per byte, by half a use and rounding or more, are never worth less."""
    values = keep_score(entries, KeepRule.DENSITY, WEIGHTS)
    for one, value in zip(entries, values, strict=True):
        for other, other_value in zip(entries, values, strict=True):
            if (
                len(one.uses_s) * other.adapter.nbytes
                > (len(other.uses_s) + 0.51) * one.adapter.nbytes
            ):
                assert value > other_value


def test_density_evicts_the_large_of_equally_used() -> None:
    """The memory of a large adapter holds many small ones, and as many more hits."""
    large, small = entry(1, LARGE, last_use_s=9.0), entry(2, SMALL)
    assert victim([large, small], KeepRule.DENSITY, WEIGHTS) == large


def test_density_keeps_the_large_whose_uses_pay_for_its_bytes() -> None:
    """Sixteen times as large but used seventeen times as often, it stays."""
    large, small = entry(1, 16 * SMALL, use_count=17), entry(2, SMALL)
    assert victim([large, small], KeepRule.DENSITY, WEIGHTS) == small


def test_density_evicts_the_longest_unused_of_equals() -> None:
    """Of equal uses and bytes, the longer unused goes."""
    new, old = entry(1, last_use_s=9.0), entry(2, last_use_s=0.0)
    assert victim([new, old], KeepRule.DENSITY, WEIGHTS) == old


def test_density_counts_for_the_smallest_what_lfu_counts() -> None:
    """Values are uses of as many bytes as the smallest entry has: half of them at twice its size."""
    small, large = entry(1, SMALL, use_count=6), entry(2, 2 * SMALL, use_count=6)
    assert [6.0, 3.0] == keep_score([small, large], KeepRule.DENSITY, WEIGHTS)


@pytest.mark.parametrize(
    "weights",
    [(-0.1, 0.1, 0.1), (0.0, 0.0, 0.0), (math.inf, 0.1, 0.1), (math.nan, 0.1, 0.1)],
)
def test_weights_out_of_range_are_refused(weights: tuple[float, float, float]) -> None:
    """Negative, all-zero and non-finite weights are refused with the way out."""
    with pytest.raises(ConfigError, match=r"keep weights.*defaults are"):
        KeepWeights(*weights)
