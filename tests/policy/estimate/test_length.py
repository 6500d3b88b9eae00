"""LengthEstimator: what every predictor owes, the running medians, and what is reserved."""

import math
import random
import statistics
from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.estimate.length import LengthEstimator, LengthSettings, Predictor
from chameleon_lora.policy.request import AdapterId, Request, RequestId

ADAPTERS = st.sampled_from([None, AdapterId(0), AdapterId(1), AdapterId(2)])
OUTPUTS = st.lists(st.tuples(ADAPTERS, st.integers(0, 2000)), max_size=60)
LAVISH = 1_000_000  # a client's limit that never binds


def asked(
    adapter_id: AdapterId | None, limit: int = LAVISH, words: tuple[int, ...] = ()
) -> Request:
    """A request without a hint."""
    return Request(RequestId("r"), adapter_id, 10, limit, None, words)


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
        estimator.observe(asked(adapter_id), 1, output_tokens)
    return estimator


def test_first_prediction_is_the_prior() -> None:
    """Before anything has finished, prior_tokens is expected of every adapter."""
    estimator = LengthEstimator(LengthSettings(prior_tokens=100))
    assert estimator.predict_tokens(asked(AdapterId(1))) == 100
    assert estimator.predict_tokens(asked(None)) == 100


def test_blend_weighs_experience_by_its_count() -> None:
    """One output of 200 against a belief of 100 worth 1 gives 150, then with it as belief 175."""
    estimator = LengthEstimator(LengthSettings(prior_tokens=100, prior_weight=1.0))
    estimator.observe(asked(AdapterId(1)), 1, 200)
    assert estimator.predict_tokens(asked(AdapterId(2))) == 150
    assert estimator.predict_tokens(asked(AdapterId(1))) == 175


def test_outlier_hardly_moves_the_prediction() -> None:
    """One output of 10,000 among twenty of 50 leaves the median, and so the prediction."""
    estimator = estimator_after([(None, 50)] * 20, LengthSettings())
    before = estimator.predict_tokens(asked(None))
    estimator.observe(asked(None), 1, 10_000)
    assert estimator.predict_tokens(asked(None)) <= before


def test_window_forgets_old_outputs() -> None:
    """After a full window of the new length, the old length has no influence."""
    settings = LengthSettings(window=8)
    changed = estimator_after([(None, 900)] * 8 + [(None, 10)] * 8, settings)
    fresh = estimator_after([(None, 10)] * 8, settings)
    assert changed.predict_tokens(asked(None)) == fresh.predict_tokens(asked(None))


def test_forgotten_adapter_is_predicted_like_an_unknown_one() -> None:
    """forget drops an adapter's own history, keeps the global one, and takes unknown ids."""
    estimator = estimator_after([(AdapterId(1), 900)] * 8 + [(None, 20)] * 9, LengthSettings())
    unknown = estimator.predict_tokens(asked(AdapterId(2)))
    assert estimator.predict_tokens(asked(AdapterId(1))) > unknown
    estimator.forget(AdapterId(1))
    estimator.forget(AdapterId(3))
    assert estimator.predict_tokens(asked(AdapterId(1))) == unknown


def test_prediction_reaches_the_median() -> None:
    """With a full window of equal outputs the prediction comes near them, whatever the prior."""
    estimator = estimator_after([(AdapterId(1), 500)] * 64, LengthSettings(prior_tokens=1))
    assert estimator.predict_tokens(asked(AdapterId(1))) == pytest.approx(500, rel=0.01)


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
    actual = estimator_after(seen, settings).predict_tokens(asked(adapter_id, limit))
    assert naive_prediction(seen, adapter_id, limit, settings) == actual
    assert 1 <= actual <= limit


@given(seen=OUTPUTS, adapter_id=ADAPTERS)
def test_predicting_changes_nothing(
    seen: list[tuple[AdapterId | None, int]], adapter_id: AdapterId | None
) -> None:
    """Two predictions in a row agree, and those of other adapters stay."""
    estimator = estimator_after(seen, LengthSettings())
    others = [estimator.predict_tokens(asked(AdapterId(i))) for i in range(4)]
    first = estimator.predict_tokens(asked(adapter_id))
    assert first == estimator.predict_tokens(asked(adapter_id))
    assert others == [estimator.predict_tokens(asked(AdapterId(i))) for i in range(4)]


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
        LengthEstimator(LengthSettings()).observe(asked(None), 1, -1)


HISTORY = st.lists(
    st.tuples(ADAPTERS, st.lists(st.integers(0, 30), max_size=6).map(tuple), st.integers(0, 3000)),
    max_size=60,
)


@pytest.mark.parametrize("predictor", Predictor)
@pytest.mark.parametrize("reserve_quantile", [0.0, 0.9])
class TestEveryPredictor:
    """What each owes, also for requests without words."""

    @given(history=HISTORY, limit=st.integers(1, 3000))
    def test_answers_within_the_limit_and_twice_the_same(
        self,
        predictor: Predictor,
        reserve_quantile: float,
        history: list[tuple[AdapterId | None, tuple[int, ...], int]],
        limit: int,
    ) -> None:
        """Predictions and reservations are 1..limit, and two estimators with one history agree."""
        settings = LengthSettings(predictor=predictor, reserve_quantile=reserve_quantile)
        estimators = [LengthEstimator(settings), LengthEstimator(settings)]
        for adapter_id, words, output_tokens in history:
            request = asked(adapter_id, limit, words)
            first, again = (
                (predicted, estimator.reserve_tokens(request, predicted))
                for estimator in estimators
                for predicted in (estimator.predict_tokens(request),)
            )
            assert first == again
            assert all(1 <= tokens <= limit for tokens in first)
            for estimator in estimators:
                estimator.observe(request, first[0], output_tokens)

    @given(history=HISTORY)
    def test_forgets(
        self,
        predictor: Predictor,
        reserve_quantile: float,
        history: list[tuple[AdapterId | None, tuple[int, ...], int]],
    ) -> None:
        """A forgotten adapter is predicted and charged like one that was never seen."""
        settings = LengthSettings(predictor=predictor, reserve_quantile=reserve_quantile)
        estimator = LengthEstimator(settings)
        for adapter_id, words, output_tokens in history:
            request = asked(adapter_id, LAVISH, words)
            estimator.observe(request, estimator.predict_tokens(request), output_tokens)
        estimator.forget(AdapterId(1))
        for words in ((), (3, 4)):
            known, unseen = asked(AdapterId(1), words=words), asked(AdapterId(7), words=words)
            assert estimator.predict_tokens(unseen) == estimator.predict_tokens(known)
            assert estimator.reserve_tokens(unseen, 100) == estimator.reserve_tokens(known, 100)


def test_words_are_heeded_only_by_their_predictor() -> None:
    """Words 1 and 2 stand for answers of 20 and 400 tokens: the median sees no difference."""
    apart = {}
    for predictor in Predictor:
        estimator = LengthEstimator(LengthSettings(predictor=predictor))
        for turn in range(200):
            word, tokens = ((1, 20), (2, 400))[turn % 2]
            estimator.observe(asked(None, words=(word, 3)), 1, tokens)
        short, long = (estimator.predict_tokens(asked(None, words=(word, 3))) for word in (1, 2))
        apart[predictor] = long - short
    assert 0 == apart[Predictor.MEDIAN]
    assert apart[Predictor.WORDS] > 200


def test_without_words_the_median_answers() -> None:
    """Each predictor says the same of a request whose prompt is unknown."""
    answers = set()
    for predictor in Predictor:
        estimator = LengthEstimator(LengthSettings(predictor=predictor))
        for tokens in (10, 20, 30, 400):
            estimator.observe(asked(AdapterId(1), words=(tokens,)), 1, tokens)
        answers.add(estimator.predict_tokens(asked(AdapterId(1))))
    assert 1 == len(answers)


class TestReserve:
    def test_by_default_it_is_what_is_predicted(self) -> None:
        """Also after outputs of twice that."""
        estimator = LengthEstimator(LengthSettings())
        for _ in range(50):
            estimator.observe(asked(None), 100, 200)
        assert 100 == estimator.reserve_tokens(asked(None), 100)

    def test_it_covers_the_share_of_outputs_asked_for(self) -> None:
        """0.9 of 4,000 outputs around a foretold length stay within, to 2 %."""
        rng = random.Random(5)
        estimator = LengthEstimator(LengthSettings(reserve_quantile=0.9))
        within = 0
        for _ in range(4000):
            predicted = rng.randint(20, 500)
            output = max(1, round(predicted * rng.lognormvariate(0.0, 0.7)))
            within += output <= estimator.reserve_tokens(asked(None), predicted)
            estimator.observe(asked(None), predicted, output)
        assert 0.9 == pytest.approx(within / 4000, abs=0.02)

    def test_an_oracle_is_charged_what_it_says(self) -> None:
        """Where every prediction came true there is nothing to add."""
        estimator = LengthEstimator(LengthSettings(reserve_quantile=0.9))
        for tokens in (7, 90, 800):
            estimator.observe(asked(None), tokens, tokens)
        assert 90 == estimator.reserve_tokens(asked(None), 90)

    def test_each_adapter_is_charged_by_its_own_errors(self) -> None:
        """One whose outputs vary threefold is charged more than one that is always as predicted."""
        estimator = LengthEstimator(LengthSettings(reserve_quantile=0.9))
        for _ in range(64):
            estimator.observe(asked(AdapterId(1)), 100, 300)
            estimator.observe(asked(AdapterId(2)), 100, 100)
        assert 285 < estimator.reserve_tokens(asked(AdapterId(1)), 100) <= 300
        assert 100 <= estimator.reserve_tokens(asked(AdapterId(2)), 100) < 120
        assert 150 == estimator.reserve_tokens(asked(AdapterId(1), limit=150), 100)

    @pytest.mark.parametrize("share", [-0.1, 1.0, math.nan])
    def test_a_share_out_of_range_is_refused(self, share: float) -> None:
        """All outputs cannot be covered by what was seen."""
        with pytest.raises(ConfigError, match=r"reserve_quantile is .*use 0 .*below 1"):
            LengthSettings(reserve_quantile=share)
