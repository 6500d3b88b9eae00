"""No number that a client may write gets its request ahead of others, holds it back or breaks a rule.

Numbers are any that vLLM carries: whole, above 0, of 64 bits.
"""

import math
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.policy.admission.rules import AdmissionSettings, Order
from chameleon_lora.policy.estimate.length import LengthSettings
from chameleon_lora.policy.estimator import Estimator
from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.queues.lanes import RequestState
from chameleon_lora.policy.request import AdapterId, Request, RequestId
from chameleon_lora.policy.settings import EngineLimits, PolicySettings, Preset, preset
from tests.policy.engine_model import EngineModel, adapter
from tests.policy.invariants import check

LARGEST = (1 << 63) - 1
COUNTS = st.integers(1, 4000) | st.integers(1, LARGEST) | st.sampled_from([1, LARGEST])
HINTS = st.none() | COUNTS
ORDERS = st.sampled_from(Order)
LIMITS = EngineLimits(seats=4, slots=2, kv_tokens=4000, kv_bytes_per_token=1000)


def intake_of(order: Order, quantile: float = 0.0) -> Estimator:
    """One that believes in 50 tokens and has seen a few requests."""
    settings = PolicySettings(
        admission=AdmissionSettings(order=order),
        length=LengthSettings(prior_tokens=50, reserve_quantile=quantile),
    )
    intake = Estimator(settings, 1000)
    for number in range(5):
        request = Request(RequestId(f"seen{number}"), None, 10, 200)
        state = intake.state(request, None, float(number))
        intake.admitted(state, number + 0.5)
        intake.ended(state, 40 + number, number + 1.0)
    return intake


def place(state: RequestState) -> tuple[float, float, int, int]:
    """All by which a request is put into a lane, ordered there and charged."""
    return (state.key, state.size, state.output_tokens, state.cost_tokens)


@given(order=ORDERS, tokens=COUNTS, limit=COUNTS, hint=HINTS, quantile=st.sampled_from([0.0, 0.9]))
def test_any_numbers_make_a_ticket_within_bounds(
    order: Order, tokens: int, limit: int, hint: int | None, quantile: float
) -> None:
    """The size is in [0, 1], the output within the client's limit, the key a finite number."""
    intake = intake_of(order, quantile)
    request = Request(RequestId("r"), AdapterId(1), tokens, limit, hint)
    state = intake.state(request, Entry(adapter(1, 1000)), 9.0)
    assert 0.0 <= state.size <= 1.0
    assert 1 <= state.output_tokens <= limit
    assert tokens < state.cost_tokens <= tokens + limit + 1
    assert math.isfinite(state.key)


@given(order=ORDERS, tokens=st.integers(1, 4000), limit=st.integers(200, LARGEST))
def test_asking_for_more_changes_nothing(order: Order, tokens: int, limit: int) -> None:
    """Above what is expected, max_tokens has no part in lane, order or charge."""
    request = Request(RequestId("r"), None, tokens, 200)
    plain = intake_of(order).state(request, None, 9.0)
    greedy = intake_of(order).state(replace(request, max_output_tokens=limit), None, 9.0)
    assert place(plain) == place(greedy)


@given(limit=st.integers(1, LARGEST))
def test_one_greedy_request_leaves_the_sizes_of_others(limit: int) -> None:
    """Sizes are told from expected outputs, so what one may generate does not shrink the rest."""
    sizes = []
    for greedy in (200, limit + 200):
        intake = intake_of(Order.FIFO)
        intake.state(Request(RequestId("greedy"), None, 10, greedy), None, 9.0)
        sizes.append(intake.state(Request(RequestId("r"), None, 10, 200), None, 9.0).size)
    assert sizes[0] == sizes[1]


def model_of(name: Preset) -> EngineModel:
    """An engine of four seats, two slots and three adapters, run by a published policy."""
    model = EngineModel(preset(name), LIMITS, load_s=0.0)
    model.register(*(adapter(number, 1000) for number in (1, 2, 3)))
    return model


REQUESTS = st.lists(
    st.tuples(
        st.integers(0, 3),
        st.integers(1, 60) | st.integers(1, 5000),
        COUNTS,
        HINTS,
        st.integers(1, 30),
    ),
    min_size=1,
    max_size=12,
)


@pytest.mark.parametrize("name", list(Preset))
@given(requests=REQUESTS)
def test_no_numbers_break_a_policy(
    name: Preset, requests: list[tuple[int, int, int, int | None, int]]
) -> None:
    """Every invariant holds after each step, under each published policy."""
    model = model_of(name)
    for number, (named, tokens, limit, hint, output) in enumerate(requests):
        adapter_id = AdapterId(named) if named else None
        request = Request(RequestId(f"r{number}"), adapter_id, tokens, limit, hint)
        model.arrive(request, min(output, limit))
        model.step()
        check(model)
    for _ in range(10):
        model.step()
        check(model)


@pytest.mark.parametrize("name", list(Preset))
@pytest.mark.parametrize("limit", [30, LARGEST])
def test_a_greedy_request_with_a_short_answer_runs_as_any_other(name: Preset, limit: int) -> None:
    """Among forty of its kind it is admitted in the step in which a modest one would be."""
    model = model_of(name)
    steps: dict[RequestId, int] = {}
    for number in range(40):
        most = limit if number == 20 else 30
        request = Request(RequestId(f"r{number}"), AdapterId(1 + number % 2), 10, most, 10)
        model.arrive(request, 10)
    for step in range(200):
        plan = model.step()
        steps.update({admission.request_id: step for admission in plan.admit})
    assert 40 == len(steps)
    neighbours = [steps[RequestId(f"r{number}")] for number in (18, 22)]
    assert neighbours[0] <= steps[RequestId("r20")] <= neighbours[1]
