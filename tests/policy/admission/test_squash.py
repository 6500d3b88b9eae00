"""Who is squashed: those whose promise to be gone in time is broken."""

import pytest

from chameleon_lora.policy.admission.rules import AdmissionSettings, Bypass, Order
from chameleon_lora.policy.plan import StepBudget, StepPlan
from chameleon_lora.policy.request import Request
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import EngineLimits, PolicySettings
from tests.policy.engine_model import EngineModel, adapter, request

ROOM = StepBudget(seats=8, kv_tokens=100_000, batch_tokens=100_000)
RUNS, HEAD, PASSER = request("runs", 1, output=30), request("head", 2), request("passer", 1)


def step(policy: Scheduler) -> StepPlan:
    """The next step, with much room."""
    return policy.step(0.0, ROOM)


def passed(limit: int = 1, bypass: Bypass = Bypass.BACKFILL, passer: Request = PASSER) -> Scheduler:
    """One slot: adapter 1 runs, a head wants adapter 2 and was passed."""
    rules = AdmissionSettings(order=Order.FIFO, squash_limit=limit, bypass=bypass)
    limits = EngineLimits(seats=8, slots=1, kv_tokens=100_000, kv_bytes_per_token=1000)
    model = EngineModel(PolicySettings(admission=rules), limits)
    model.preload(adapter(1), adapter(2))
    policy = model.policy
    policy.arrived(RUNS, 0.0)
    step(policy)
    policy.arrived(HEAD, 0.0)
    policy.arrived(passer, 0.0)
    assert [passer.id] == [admission.request_id for admission in step(policy).admit]
    return policy


def test_promise_holds_while_others_keep_the_slot() -> None:
    """The slot is not free for the head anyway, so nobody is squashed."""
    assert () == step(passed()).squash


def test_passer_that_alone_keeps_the_slot_is_squashed_and_the_head_runs() -> None:
    """When all before it have ended, the passer goes back and the head gets the slot."""
    policy = passed()
    policy.finished(RUNS.id, 9, 0.0)
    assert (PASSER.id,) == step(policy).squash
    policy.requeued(PASSER.id, 1)
    plan = step(policy)
    assert [HEAD.id] == [admission.request_id for admission in plan.admit]
    assert [(2, 0)] == [(a.adapter_id, a.slot) for a in plan.activations]


@pytest.mark.parametrize("limit", [0, 1])
def test_limit_is_respected(limit: int) -> None:
    """One squashed as often as the limit says runs to its end."""
    policy = passed(limit)
    for _ in range(limit):
        policy.requeued(PASSER.id, 1)
        step(policy)
    policy.finished(RUNS.id, 9, 0.0)
    assert () == step(policy).squash


def test_whoever_was_admitted_in_this_step_stays() -> None:
    """A slot whose adapter somebody was just let in with is left alone for this step."""
    policy = passed()
    policy.finished(RUNS.id, 9, 0.0)
    policy.arrived(request("another", 1, output=1), 0.0)
    plan = step(policy)
    assert ["another"] == [admission.request_id for admission in plan.admit]
    assert () == plan.squash


def test_one_without_a_promise_keeps_the_others() -> None:
    """As long as one that owes nothing runs with the adapter, squashing frees no slot."""
    policy = passed()
    assert () == step(policy).squash
    policy.finished(HEAD.id, 0, 0.0)
    policy.arrived(request("next head", 2), 0.0)
    policy.finished(RUNS.id, 9, 0.0)
    assert () == step(policy).squash  # it promised the former head, not this one


def test_base_model_passers_hold_no_slot() -> None:
    """With PAPER's rule a base-model request promises too, but squashing it would free no slot."""
    policy = passed(bypass=Bypass.PAPER, passer=request("passer"))
    assert () == step(policy).squash
