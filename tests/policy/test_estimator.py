"""What a request is taken for when it arrives."""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.policy.admission.rules import AdmissionSettings, Order
from chameleon_lora.policy.estimate.length import LengthSettings
from chameleon_lora.policy.estimator import Estimator, LoadEstimator
from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.settings import PolicySettings
from tests.policy.engine_model import adapter, request

FIFO = AdmissionSettings(order=Order.FIFO)


def make(admission: AdmissionSettings = FIFO) -> Estimator:
    """An intake that expects 50 tokens of output and counts 100 bytes as one token."""
    settings = PolicySettings(admission=admission, length=LengthSettings(prior_tokens=50))
    return Estimator(settings, 100)


def test_sequences_count_arrivals() -> None:
    """The first request is number 1."""
    intake = make()
    assert [1, 2] == [intake.state(request(name), None, 0.0).sequence for name in "ab"]


def test_hint_is_believed_up_to_the_clients_limit() -> None:
    """A foretold output of 30 counts as 30, or as 20 if the client allows no more."""
    intake = make()
    assert 30 == intake.state(request("a", output=30, limit=90), None, 0.0).output_tokens
    assert 20 == intake.state(request("b", output=30, limit=20), None, 0.0).output_tokens


def test_without_hint_the_estimate_counts() -> None:
    """0 or no hint: what the estimator expects, within the client's limit."""
    intake = make()
    assert 50 == intake.state(request("a", output=0, limit=90), None, 0.0).output_tokens
    assert 7 == intake.state(request("b", output=0, limit=7), None, 0.0).output_tokens


def test_cost_is_input_output_and_adapter_in_tokens() -> None:
    """10 + 5 tokens and 450 bytes at 100 a token cost 19."""
    state = make().state(request("a", 1), Entry(adapter(1, 450)), 0.0)
    assert (19, 10) == (state.cost_tokens, state.prefill_tokens)


def test_a_quantile_is_charged_instead_of_the_prediction() -> None:
    """Where answers had three times what was foretold, 90 tokens are charged for 30; order is by 30."""
    length = LengthSettings(reserve_quantile=0.9)
    intake = Estimator(PolicySettings(admission=FIFO, length=length), 100)
    for _ in range(64):
        intake.ended(intake.state(request("a", output=30, limit=90), None, 0.0), 90, 1.0)
    state = intake.state(request("b", output=30, limit=1000), None, 2.0)
    assert 30 == state.output_tokens
    assert 10 + 90 == pytest.approx(state.cost_tokens, abs=12)
    assert 10 + 40 == intake.state(request("c", output=30, limit=40), None, 2.0).cost_tokens


def test_an_end_teaches_what_the_words_of_the_prompt_mean() -> None:
    """Requests whose prompts hold word 1 had long answers, those with 2 short ones."""
    intake = make()
    for turn in range(200):
        taught = replace(request("a", output=0, limit=900), words=(1 + turn % 2,))
        intake.ended(intake.state(taught, None, 0.0), 10 if turn % 2 else 500, 1.0)
    long, short = (
        intake.state(replace(request("b", output=0, limit=900), words=(word,)), None, 2.0)
        for word in (1, 2)
    )
    assert short.output_tokens * 5 < long.output_tokens


def test_fifo_orders_by_arrival() -> None:
    """However long they are."""
    intake = make()
    long = intake.state(request("a", output=900), None, 0.0)
    short = intake.state(request("b", output=1), None, 0.0)
    assert long.order < short.order


def test_sjf_orders_by_output_with_an_allowance_for_age() -> None:
    """At 10 tokens a second, a request 5 s older may be up to 50 tokens longer."""
    intake = make(AdmissionSettings(order=Order.SJF, aging_tokens_per_s=10.0))
    old = intake.state(request("old", output=60), None, 0.0)
    shorter = intake.state(request("shorter", output=9), None, 5.0)
    longer = intake.state(request("longer", output=11), None, 5.0)
    assert shorter.order < old.order < longer.order


def test_boost_orders_by_arrival_less_a_head_start_for_small_ones() -> None:
    """Where requests wait 10 s, a small one passes a large one that came a little before, not long."""
    intake = make(AdmissionSettings(order=Order.BOOST))
    for tenth in range(1000):
        state = intake.state(request("before"), None, tenth / 10)
        intake.admitted(state, tenth / 10 + 10.0)
        intake.ended(state, 90, tenth / 10 + 10.0)
    large = intake.state(request("large", tokens=30_000), None, 200.0)
    small = intake.state(request("small"), None, 201.0)
    much_later = intake.state(request("later"), None, 400.0)
    assert small.order < large.order < much_later.order


def test_registered_adapters_count_for_the_size() -> None:
    """Beside one of twice the bytes an adapter's request has half the size."""
    intake = make()
    intake.registered(adapter(2, 900))
    entry = Entry(adapter(1, 450))
    intake.registered(entry.adapter)
    assert 0.5 == intake.state(request("a", 1), entry, 0.0).size


def settled(wait_s: float, tokens: int, gap_s: float) -> LoadEstimator:
    """After thousands of requests of this wait, size and time between two ends."""
    pace = LoadEstimator()
    for number in range(2000):
        pace.admitted(wait_s)
        pace.ended(tokens, number * gap_s)
    return pace


def test_no_head_start_before_anything_is_known() -> None:
    """Neither at the start, nor while nothing waits, nor before two requests have ended."""
    assert 0.0 == LoadEstimator().boost_s(1)
    assert 0.0 == settled(0.0, 100, 0.1).boost_s(1)
    pace = LoadEstimator()
    pace.admitted(1e3)
    pace.ended(100, 1.0)
    assert 0.0 == pace.boost_s(1)


def test_it_is_the_formula_of_the_boost_policy() -> None:
    """100 tokens in 0.1 s and a mean wait of 2 s: b(s) = 2 ln(1 / (1 - exp(-s / 2)))."""
    pace = settled(2.0, 100, 0.1)
    expected = 2.0 * math.log(1 / (1 - math.exp(-0.5 / 2.0)))
    assert math.isclose(expected, pace.boost_s(500), rel_tol=1e-3)


@given(
    waits_s=st.lists(st.floats(0, 1e5), min_size=1, max_size=8),
    ends=st.lists(st.tuples(st.integers(1, 10**6), st.floats(0, 1e4)), min_size=2, max_size=8),
    sizes=st.lists(st.integers(1, 10**7), min_size=2, max_size=8),
)
def test_never_negative_and_never_more_for_a_larger_request(
    waits_s: list[float], ends: list[tuple[int, float]], sizes: list[int]
) -> None:
    """Whatever was seen, the head start is finite, at least 0, and falls with the size."""
    pace = LoadEstimator()
    now_s = 0.0
    for wait_s in waits_s:
        pace.admitted(wait_s)
    for tokens, gap_s in ends:
        now_s += gap_s
        pace.ended(tokens, now_s)
    boosts = [pace.boost_s(tokens) for tokens in sorted(sizes)]
    assert all(0.0 <= boost < math.inf for boost in boosts)
    assert sorted(boosts, reverse=True) == boosts
