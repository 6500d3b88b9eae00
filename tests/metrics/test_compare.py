"""Two runs of the same requests."""

import pytest

from chameleon_lora.metrics.compare import median_ratio, paired_ttft_ratios, ratio
from tests.metrics.records import record


def test_ratios_pair_requests_by_index() -> None:
    """TTFTs 1, 2, 4 against 2, 1, 4 in another order: 2, 0.5, 1."""
    base = [record(i, 0.0, (t,)) for i, t in enumerate((1.0, 2.0, 4.0))]
    other = [record(i, 0.0, (t,)) for i, t in ((2, 4.0), (1, 1.0), (0, 2.0))]
    assert paired_ttft_ratios(base, other) == (2.0, 0.5, 1.0)


def test_a_request_without_first_token_has_no_ratio() -> None:
    """Request 0 failed in one run, request 1 in the other: only request 2 remains."""
    base = [record(0, 0.0, ()), record(1, 0.0, (1.0,)), record(2, 0.0, (2.0,))]
    other = [record(0, 0.0, (1.0,)), record(1, 0.0, ()), record(2, 0.0, (1.0,))]
    assert paired_ttft_ratios(base, other) == (0.5,)


def test_median_of_three_ratios() -> None:
    """2, 0.5, 1: 1."""
    assert median_ratio((2.0, 0.5, 1.0)) == 1.0


def test_no_ratios_have_no_median() -> None:
    """Nothing paired, nothing to say."""
    assert median_ratio(()) is None


@pytest.mark.parametrize(
    ("base", "other", "expected"), [(4.0, 1.0, 0.25), (0.0, 1.0, None), (None, 1.0, None)]
)
def test_ratio_of_two_figures(
    base: float | None, other: float | None, expected: float | None
) -> None:
    """The other over the base; nothing over a base of nothing."""
    assert ratio(base, other) == expected
