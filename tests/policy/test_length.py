"""LengthEstimator: running medians that start from a belief."""

import math
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.length import LengthEstimator, LengthSettings
from chameleon_lora.policy.request import AdapterId

ADAPTERS = st.sampled_from([None, AdapterId(0), AdapterId(1), AdapterId(2)])
OUTPUTS = st.lists(st.tuples(ADAPTERS, st.integers(0, 2000)), max_size=60)
LAVISH = 1_000_000  # a client's limit that never binds


def naive_prediction(
    seen: list[tuple[AdapterId | None, int]],
    adapter_id: AdapterId | None,
    max_output_tokens: int,
    settings: LengthSettings,
) -> int:
    """The two blends of the definition, from the whole history."""
    expected = float(settings.prior_tokens)
    histories = [[n for _, n in seen], [n for a, n in seen if a == adapter_id]]
    for outputs in histories:
        window = outputs[-settings.window :]
        if window:
            evidence = len(window) * float(statistics.median(window))
            weight = settings.prior_weight
            expected = (evidence + weight * expected) / (len(window) + weight)
    return max(1, min(max_output_tokens, round(expected)))


def estimator_after(
    seen: Sequence[tuple[AdapterId | None, int]], settings: LengthSettings
) -> LengthEstimator:
    estimator = LengthEstimator(settings)
    for adapter_id, output_tokens in seen:
        estimator.observe(adapter_id, output_tokens)
    return estimator


def test_first_prediction_is_the_prior() -> None:
    """Before anything has finished, prior_tokens is expected of every adapter."""
    estimator = LengthEstimator(LengthSettings(prior_tokens=100))
    assert estimator.predict(AdapterId(1), LAVISH) == 100
    assert estimator.predict(None, LAVISH) == 100


def test_blend_weighs_experience_by_its_count() -> None:
    """One output of 200 against a belief of 100 worth 1 gives 150, then with it as belief 175."""
    estimator = LengthEstimator(LengthSettings(prior_tokens=100, prior_weight=1.0))
    estimator.observe(AdapterId(1), 200)
    assert estimator.predict(AdapterId(2), LAVISH) == 150
    assert estimator.predict(AdapterId(1), LAVISH) == 175


def test_outlier_hardly_moves_the_prediction() -> None:
    """One output of 10,000 among twenty of 50 leaves the median, and so the prediction."""
    estimator = estimator_after([(None, 50)] * 20, LengthSettings())
    before = estimator.predict(None, LAVISH)
    estimator.observe(None, 10_000)
    assert estimator.predict(None, LAVISH) <= before


def test_window_forgets_old_outputs() -> None:
    """After a full window of the new length, the old length has no influence."""
    settings = LengthSettings(window=8)
    changed = estimator_after([(None, 900)] * 8 + [(None, 10)] * 8, settings)
    fresh = estimator_after([(None, 10)] * 8, settings)
    assert changed.predict(None, LAVISH) == fresh.predict(None, LAVISH)


def test_forgotten_adapter_is_predicted_like_an_unknown_one() -> None:
    """forget drops an adapter's own history, keeps the global one, and takes unknown ids."""
    estimator = estimator_after([(AdapterId(1), 900)] * 8 + [(None, 20)] * 9, LengthSettings())
    unknown = estimator.predict(AdapterId(2), LAVISH)
    assert estimator.predict(AdapterId(1), LAVISH) > unknown
    estimator.forget(AdapterId(1))
    estimator.forget(AdapterId(3))
    assert estimator.predict(AdapterId(1), LAVISH) == unknown


def test_prediction_reaches_the_median() -> None:
    """With a full window of equal outputs the prediction comes near them, whatever the prior."""
    estimator = estimator_after([(AdapterId(1), 500)] * 64, LengthSettings(prior_tokens=1))
    assert estimator.predict(AdapterId(1), LAVISH) == pytest.approx(500, rel=0.01)


@given(
    seen=OUTPUTS,
    adapter_id=ADAPTERS,
    limit=st.integers(1, 3000),
    settings=st.builds(
        LengthSettings,
        prior_tokens=st.integers(1, 500),
        prior_weight=st.sampled_from([0.5, 1.0, 4.0]),
        window=st.integers(1, 9),
    ),
)
def test_predictions_equal_the_definition(
    seen: list[tuple[AdapterId | None, int]],
    adapter_id: AdapterId | None,
    limit: int,
    settings: LengthSettings,
) -> None:
    """The incremental medians answer like medians of the whole history, within 1..limit."""
    actual = estimator_after(seen, settings).predict(adapter_id, limit)
    assert naive_prediction(seen, adapter_id, limit, settings) == actual
    assert 1 <= actual <= limit


@given(seen=OUTPUTS, adapter_id=ADAPTERS)
def test_predicting_changes_nothing(
    seen: list[tuple[AdapterId | None, int]], adapter_id: AdapterId | None
) -> None:
    """Two predictions in a row agree, and those of other adapters stay."""
    estimator = estimator_after(seen, LengthSettings())
    others = [estimator.predict(AdapterId(i), LAVISH) for i in range(4)]
    first = estimator.predict(adapter_id, LAVISH)
    assert first == estimator.predict(adapter_id, LAVISH)
    assert others == [estimator.predict(AdapterId(i), LAVISH) for i in range(4)]


def test_prior_below_one_token_is_refused() -> None:
    """A prior of 0 tokens is refused with value, limit and way out."""
    with pytest.raises(ConfigError, match=r"prior_tokens is 0.*at least 1.*128"):
        LengthSettings(prior_tokens=0)


@pytest.mark.parametrize("weight", [0.0, -1.0, math.inf, math.nan])
def test_prior_weight_out_of_range_is_refused(weight: float) -> None:
    """A prior weight must be above 0 and finite."""
    with pytest.raises(ConfigError, match="prior_weight"):
        LengthSettings(prior_weight=weight)


def test_empty_window_is_refused() -> None:
    """A window of 0 outputs is refused with value, limit and way out."""
    with pytest.raises(ConfigError, match=r"window is 0.*at least 1.*64"):
        LengthSettings(window=0)


def test_negative_output_is_impossible() -> None:
    """An output below 0 tokens is a driver's fault and stops the run."""
    with pytest.raises(AssertionError, match="-1"):
        LengthEstimator(LengthSettings()).observe(None, -1)
