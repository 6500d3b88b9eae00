"""Sizer: the weighted request size."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.estimate.size import Sizer, SizeRule, SizeSettings

TOKENS = st.integers(1, 100_000)
BYTES = st.integers(1, 2**33)
FACTS = st.lists(st.tuples(TOKENS, TOKENS, st.none() | BYTES), min_size=1, max_size=8)
RULES = st.sampled_from(SizeRule)
WEIGHTS = st.tuples(st.floats(0, 1e6), st.floats(0, 1e6)).filter(lambda w: sum(w) > 0)

Fact = tuple[int, int, int | None]


def naive_size(registered: list[int], facts: list[Fact], settings: SizeSettings) -> float:
    """The last fact's size, from all that was registered and seen."""
    input_tokens, output_tokens, adapter_bytes = facts[-1]
    known = registered + [nbytes for _, _, nbytes in facts if nbytes is not None]
    output = output_tokens / max(n for _, n, _ in facts)
    a, b = settings.input_weight, settings.output_weight
    work = (a * (input_tokens / max(n for n, _, _ in facts)) + b * output) / (a + b)
    factor = 1.0
    if known:
        factor = (min(known) if adapter_bytes is None else adapter_bytes) / max(known)
    answers = {
        SizeRule.PRODUCT: work * factor,
        SizeRule.SUM: (work + factor) / 2,
        SizeRule.OUTPUT: output,
    }
    return answers[settings.rule]


def test_first_request_has_size_one() -> None:
    """The first request is the largest so far in all respects."""
    assert Sizer(SizeSettings()).size(10, 20, 30) == 1.0


def test_product_multiplies_work_and_adapter() -> None:
    """Half the input, all the output, a quarter of the bytes: (0.4 * 0.5 + 0.6) * 0.25."""
    sizer = Sizer(SizeSettings())
    sizer.size(1000, 200, 64)
    assert sizer.size(500, 200, 16) == pytest.approx(0.2)


def test_sum_averages_work_and_adapter() -> None:
    """The same request by the degree-1 rule: (0.8 + 0.25) / 2."""
    sizer = Sizer(SizeSettings(rule=SizeRule.SUM))
    sizer.size(1000, 200, 64)
    assert sizer.size(500, 200, 16) == pytest.approx(0.525)


def test_output_rule_ignores_input_and_adapter() -> None:
    """By output alone, a quarter of the longest output has size 0.25."""
    sizer = Sizer(SizeSettings(rule=SizeRule.OUTPUT))
    sizer.size(1, 400, 1)
    assert sizer.size(5000, 100, 64) == 0.25


def test_base_request_counts_as_one_for_the_smallest_adapter() -> None:
    """A huge base-model prompt is not of size 0: it has the smallest adapter's factor."""
    sizer = Sizer(SizeSettings())
    sizer.registered(8)
    sizer.registered(128)
    assert sizer.size(30_000, 500, None) == pytest.approx(8 / 128)
    assert sizer.size(30_000, 500, 8) == sizer.size(30_000, 500, None)


def test_base_request_without_any_adapter_counts_in_full() -> None:
    """With no adapter known, the adapter's factor is 1."""
    sizer = Sizer(SizeSettings())
    sizer.size(100, 100, None)
    assert sizer.size(50, 50, None) == pytest.approx(0.5)


def test_larger_requests_shrink_the_sizes_after_them() -> None:
    """The maxima grow with what is seen: the same request is smaller after a larger one."""
    sizer = Sizer(SizeSettings())
    before = sizer.size(100, 100, 64)
    sizer.size(1000, 1000, 64)
    assert sizer.size(100, 100, 64) == pytest.approx(before / 10)


@given(registered=st.lists(BYTES, max_size=5), facts=FACTS, rule=RULES, weights=WEIGHTS)
def test_sizes_equal_the_definition(
    registered: list[int], facts: list[Fact], rule: SizeRule, weights: tuple[float, float]
) -> None:
    """The running maxima answer like maxima over the whole history, and within [0, 1]."""
    settings = SizeSettings(rule, *weights)
    sizer = Sizer(settings)
    for nbytes in registered:
        sizer.registered(nbytes)
    actual = [sizer.size(*fact) for fact in facts][-1]
    assert naive_size(registered, facts, settings) == pytest.approx(actual)
    assert 0.0 <= actual <= 1.0


@given(fact=st.tuples(TOKENS, TOKENS, BYTES), rule=RULES, more=st.tuples(TOKENS, TOKENS, BYTES))
def test_more_of_anything_is_never_smaller(
    fact: tuple[int, int, int], rule: SizeRule, more: tuple[int, int, int]
) -> None:
    """Under fixed maxima, size grows with input, output and adapter bytes."""
    sizer = Sizer(SizeSettings(rule))
    sizer.size(200_000, 200_000, 2**35)
    least = sizer.size(*fact)
    assert least <= sizer.size(fact[0] + more[0], fact[1] + more[1], fact[2] + more[2])


@pytest.mark.parametrize(
    "weights", [(-0.1, 0.6), (0.4, -0.1), (0.0, 0.0), (math.inf, 0.6), (math.nan, 1.0)]
)
def test_weights_out_of_range_are_refused(weights: tuple[float, float]) -> None:
    """Negative, all-zero and non-finite weights are refused with the way out."""
    with pytest.raises(ConfigError, match=r"input_weight.*defaults are 0\.4 and 0\.6"):
        SizeSettings(SizeRule.PRODUCT, *weights)


def test_adapter_without_bytes_is_impossible() -> None:
    """An adapter of 0 bytes is a driver's fault and stops the run."""
    with pytest.raises(AssertionError, match="0 bytes"):
        Sizer(SizeSettings()).registered(0)
