"""Fair sharing inside a lane: who has had less than its share goes first."""

from collections import Counter

import pytest

from chameleon_lora.policy.queues.shares import Shares
from chameleon_lora.policy.request import AdapterId, Request, RequestId, Share
from chameleon_lora.policy.settings import (
    AdmissionSettings,
    EngineLimits,
    LaneSettings,
    Order,
    PolicySettings,
    Preset,
    preset,
)
from tests.policy.engine_model import EngineModel, adapter

ONE_SEAT = EngineLimits(seats=1, slots=2, kv_tokens=4096, kv_bytes_per_token=1000)
BULK, SMALL = Share("bulk"), Share("small")


def ask(name: str, share: Share | None, adapter_id: int | None = None) -> Request:
    """A request that is charged 20 tokens and, with an adapter, one more."""
    named = None if adapter_id is None else AdapterId(adapter_id)
    return Request(RequestId(name), named, 10, 10, 10, share=share)


def engine(name: Preset = Preset.CHAMELEON) -> EngineModel:
    """One seat, two adapters in host memory."""
    model = EngineModel(preset(name), ONE_SEAT)
    model.preload(adapter(1), adapter(2))
    return model


def order_of(model: EngineModel) -> list[str]:
    """The requests in the order of admission."""
    model.run_until_idle()
    return [str(a.request_id) for plan in model.plans for a in plan.admit]


@pytest.mark.parametrize("name", [Preset.CHAMELEON, Preset.PAPER, Preset.VLLM, Preset.SJF])
def test_one_that_floods_does_not_keep_another_waiting(name: Preset) -> None:
    """Of equal weights, those who come after a flood take turns with it."""
    model = engine(name)
    for number in range(6):
        model.arrive(ask(f"b{number}", BULK), 10)
    for number in range(3):
        model.arrive(ask(f"s{number}", SMALL), 10)
    assert ["b0", "s0", "b1", "s1", "b2", "s2", "b3", "b4", "b5"] == order_of(model)


def test_weights_are_shares_of_tokens() -> None:
    """Three times the weight is three of four admissions, if all cost the same."""
    model = engine()
    for number in range(20):
        model.arrive(ask(f"light{number}", Share("light", 1.0)), 10)
        model.arrive(ask(f"heavy{number}", Share("heavy", 3.0)), 10)
    first = Counter(name.rstrip("0123456789") for name in order_of(model)[:20])
    assert {"heavy": 15, "light": 5} == first


def test_without_shares_the_order_is_that_of_arrival() -> None:
    """One who floods goes first, as ever."""
    model = engine(Preset.PAPER)
    names = [f"r{number}" for number in range(6)]
    for name in names:
        model.arrive(ask(name, None), 10)
    assert names == order_of(model)


def test_within_a_share_the_order_is_the_lanes_own() -> None:
    """Shortest first stays shortest first among the requests of one share."""
    model = engine(Preset.SJF)
    for name, tokens in (("long", 90), ("short", 10)):
        request = Request(RequestId(name), None, 10, tokens, tokens, share=BULK)
        model.arrive(request, tokens)
    assert ["short", "long"] == order_of(model)


def test_the_same_adapter_is_shared_too() -> None:
    """Two shares that name one adapter, which alone is in a slot, take turns with it."""
    model = engine()
    for number in range(4):
        model.arrive(ask(f"b{number}", BULK, 1), 10)
    for number in range(2):
        model.arrive(ask(f"s{number}", SMALL, 1), 10)
    assert ["b0", "s0", "b1", "s1", "b2", "b3"] == order_of(model)


def test_idle_time_is_no_credit() -> None:
    """Who comes back after a pause is level with those who wait, not ahead of them by the pause."""
    shares = Shares()
    shares.waits(BULK)
    shares.charge(BULK, 1000)
    shares.waits(SMALL)
    assert 1000 == shares.had(SMALL)


def test_nor_is_a_pause_of_all() -> None:
    """If nobody waits, who comes starts where the last one admitted stood."""
    shares = Shares()
    shares.waits(BULK)
    for tokens in (1000, 50):
        shares.charge(BULK, tokens)
    shares.waits_no_more(BULK)
    shares.waits(SMALL)
    assert (1000, 1050) == (shares.had(SMALL), shares.had(BULK))


def test_one_that_goes_back_is_charged_once() -> None:
    """A request that was preempted, or not admitted after all, gives its charge back."""
    model = engine()
    model.arrive(ask("b", BULK), 10)
    model.plan()
    model.preempt(RequestId("b"))
    assert 0 == model.policy._backlog._shares.had(BULK)
    model.plan()
    assert 20 == model.policy._backlog._shares.had(BULK)


def test_requests_without_a_share_leave_no_trace() -> None:
    """Nothing is counted for them."""
    shares = Shares()
    shares.waits(None)
    shares.charge(None, 1000)
    shares.waits_no_more(None)
    assert (0, {}, {}) == (shares.had(None), shares._had, shares._waiting)


def test_no_weight_keeps_anybody_waiting_for_ever() -> None:
    """The oldest request goes first once it was overtaken to its limit (ADR 0012)."""
    limit = PolicySettings().admission.overtake_limit
    assert limit is not None
    model = engine()
    for name in ("old", "oldest"):
        model.arrive(ask(name, Share("light", 1e-6)), 10)
    for number in range(limit + 20):
        model.arrive(ask(f"h{number}", Share("heavy", 1e6)), 10)
    assert 1 + limit == order_of(model).index("oldest")


def large_one_in_a_flood(model: EngineModel) -> int:
    """The place of another tenant's large request, among a flood of small ones that came before.

    Small and large ones have run before, from which lanes can be cut.
    """
    for number in range(16):
        tokens = 10 + 190 * (number % 2)
        model.arrive(Request(RequestId(f"w{number}"), None, tokens, tokens, tokens), tokens)
    model.run_until_idle()
    model.plans.clear()
    for number in range(12):
        model.arrive(ask(f"b{number}", BULK), 10)
    model.arrive(Request(RequestId("s"), None, 200, 200, 200, share=SMALL), 200)
    return order_of(model).index("s")


def test_turns_are_taken_across_lanes_too() -> None:
    """A flood of small requests does not keep another tenant's large ones waiting in their lane."""
    settings = PolicySettings(
        lanes=LaneSettings(first_after=16, has_quotas=False),
        admission=AdmissionSettings(order=Order.FIFO),
    )
    model = EngineModel(settings, EngineLimits(2, 2, 4096, kv_bytes_per_token=1000))
    assert large_one_in_a_flood(model) < 3
    assert 2 == len(model.policy.view(model.now_s).lanes)


def test_turns_are_taken_where_there_are_fewer_seats_than_sizes() -> None:
    """With one seat there is one lane: another's quota would be none, and its tenant last."""
    model = EngineModel(PolicySettings(lanes=LaneSettings(first_after=16)), ONE_SEAT)
    assert large_one_in_a_flood(model) < 3


def test_one_that_had_much_comes_back_with_what_it_had() -> None:
    """A pause is no pardon: it stays behind another that waits and has had less."""
    shares = Shares()
    shares.charge(BULK, 100)
    shares.waits(SMALL)
    shares.waits(BULK)
    assert [100.0, 0.0] == [shares.had(share) for share in (BULK, SMALL)]


def test_what_is_given_back_is_what_was_charged() -> None:
    """By its weight, and beside what it had before."""
    shares, heavy = Shares(), Share("heavy", 4.0)
    shares.charge(heavy, 100)
    shares.charge(heavy, 20)
    shares.give_back(heavy, 20)
    assert 25.0 == shares.had(heavy)


def test_what_counts_is_what_was_generated_not_what_was_foretold() -> None:
    """One whose answers were foretold too short takes turns all the same, once some have ended."""
    model = engine()
    for number in range(12):
        model.arrive(Request(RequestId(f"b{number}"), None, 10, 60, 5, share=BULK), 50)
    for number in range(4):
        model.arrive(Request(RequestId(f"s{number}"), None, 10, 60, 50, share=SMALL), 50)
    assert order_of(model).index("s3") < 9
