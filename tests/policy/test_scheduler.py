"""The facade: facts about adapters and requests, and what the plans make of them."""

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.policy.memory.entry import RETRY_AFTER_S, Tier
from chameleon_lora.policy.memory.headroom import DeviceSettings
from chameleon_lora.policy.memory.residency import CacheSettings
from chameleon_lora.policy.plan import (
    DemotionReason,
    Fault,
    Held,
    LaneState,
    StepBudget,
    StepPlan,
)
from chameleon_lora.policy.queues.calibration import LaneSettings
from chameleon_lora.policy.request import AdapterId
from chameleon_lora.policy.settings import EngineLimits, PolicySettings, Preset, preset
from tests.policy.engine_model import EngineModel, adapter, request
from tests.policy.invariants import check, check_idle

ROOT = Path(__file__).resolve().parents[2]
LIMITS = EngineLimits(seats=4, slots=2, kv_tokens=4000, kv_bytes_per_token=1000)
ON_DEVICE = EngineLimits(seats=4, slots=2, kv_tokens=1600, kv_bytes_per_token=100, block_bytes=1600)
ONE = AdapterId(1)


def make(host_bytes: int | None = None, **changes: object) -> EngineModel:
    """An engine with three adapters of 1,000 bytes on disk; loads end at the next step."""
    settings = PolicySettings(cache=CacheSettings(host_bytes=host_bytes))
    model = EngineModel(settings, LIMITS, load_s=0.0, **changes)  # type: ignore[arg-type]
    model.register(*(adapter(number, 1000) for number in (1, 2, 3)))
    return model


def loaded(plan: StepPlan) -> list[int]:
    """The adapters that the plan reads from disk."""
    return [load.adapter_id for load in plan.loads]


class TestWayOfARequest:
    def test_adapter_is_read_copied_and_used(self) -> None:
        """One step reads the adapter, the next copies it into a slot and admits the request."""
        model = make()
        model.arrive(request("a", 1), 2)
        first, second = model.step(), model.step()
        assert ([1], ()) == (loaded(first), first.admit)
        assert [(1, 0)] == [(a.adapter_id, a.slot) for a in second.activations]
        assert ["a"] == [admission.request_id for admission in second.admit]
        model.run_until_idle()
        check_idle(model)

    def test_second_request_of_a_cached_adapter_costs_nothing(self) -> None:
        """Its plan has neither load nor copy."""
        model = make()
        model.arrive(request("a", 1), 2)
        model.run_until_idle()
        model.arrive(request("b", 1), 2)
        plan = model.step()
        assert ((), ()) == (plan.loads, plan.activations)
        assert 1 == len(plan.admit)

    def test_arriving_twice_is_a_fault(self) -> None:
        """A driver must not tell of a request that is unfinished a second time."""
        model = make()
        model.policy.arrived(request("a"), 0.0)
        with pytest.raises(AssertionError, match="arrived twice"):
            model.policy.arrived(request("a"), 0.0)

    def test_finishing_an_unknown_request_changes_nothing(self) -> None:
        """It may have failed or ended before."""
        model = make()
        model.policy.finished(request("a").id, 3, 0.0)
        check(model)

    def test_aborted_requests_teach_nothing(self) -> None:
        """Only outputs of requests that ended well count for the estimate."""
        model = make()
        probe = request("probe", output=0, limit=1 << 30)
        before = model.policy._estimator.lengths.predict_tokens(probe)
        model.arrive(request("a", output=900), 900)
        model.step()
        model.abort(request("a").id)
        assert before == model.policy._estimator.lengths.predict_tokens(probe)
        model.arrive(request("b", output=900), 900)
        model.run_until_idle()
        assert before < model.policy._estimator.lengths.predict_tokens(probe)

    def test_wait_is_measured_once(self) -> None:
        """A preempted request does not count as one that waited since its arrival."""
        model = make()
        model.arrive(request("a"), 50)
        model.step()
        model.now_s += 1000.0
        before = model.policy._estimator._load._wait_s
        model.preempt(request("a").id)
        model.step()
        assert before == model.policy._estimator._load._wait_s

    def test_preempted_request_is_charged_for_what_it_generated(self) -> None:
        """Its next prefill has its prompt and its 3 tokens."""
        model = make()
        model.arrive(request("a"), 50)
        for _ in range(3):
            model.step()
        model.preempt(request("a").id)
        assert 13 == model.policy._backlog.states[request("a").id].prefill_tokens


class TestBrokenAdapters:
    def test_failed_load_ends_exactly_those_that_wait_for_it(self) -> None:
        """Requests of other adapters and of the base model go on."""
        model = make(broken=frozenset({ONE}))
        for name, named in (("a", 1), ("b", 1), ("c", 2), ("d", None)):
            model.arrive(request(name, named), 2)
        model.run_until_idle()
        model.step()
        failed = [name for name, done in model.done.items() if done.failure]
        assert ["a", "b"] == failed
        assert all(done.end_s for name, done in model.done.items() if name in "cd")

    def test_within_a_second_later_requests_fail_too(self) -> None:
        """The file is not read again for each of them."""
        model = make(broken=frozenset({ONE}))
        model.arrive(request("a", 1), 2)
        model.run_until_idle()
        model.arrive(request("b", 1), 2)
        plan = model.step()
        assert (["b"], ()) == ([failure.request_id for failure in plan.fail][-1:], plan.loads)

    def test_after_a_second_it_is_read_again(self) -> None:
        """A file that was mended is served."""
        model = make(broken=frozenset({ONE}))
        model.arrive(request("a", 1), 2)
        model.run_until_idle()
        model.broken = frozenset()
        model.now_s += RETRY_AFTER_S
        model.arrive(request("b", 1), 2)
        assert [1] == loaded(model.step())
        model.arrive(request("c", 1), 2)
        model.run_until_idle()
        assert all(model.done[request(name).id].end_s for name in "bc")

    @pytest.mark.parametrize("is_pinned", [False, True])
    def test_one_whose_own_bytes_fail_is_never_read_again(self, is_pinned: bool) -> None:
        """Later requests fail at once by the same fault, however much later, pinned or not."""
        model = make(broken=frozenset({ONE}), fault=Fault.CONTENT)
        model.arrive(request("a", 1), 2)
        model.run_until_idle()
        model.policy.pin(ONE, is_pinned=is_pinned)
        for _ in range(10):
            model.now_s += 100.0
            assert () == model.step().loads
        model.arrive(request("b", 1), 2)
        plan = model.step()
        assert [("b", Fault.CONTENT)] == [(failed.request_id, failed.fault) for failed in plan.fail]
        assert () == plan.loads

    def test_larger_than_host_memory_fails_with_both_numbers(self) -> None:
        """An adapter that never fits does not hold up the others."""
        model = make(host_bytes=2500)
        model.register(adapter(9, 2501))
        model.arrive(request("a", 9), 2)
        model.arrive(request("b", 1), 2)
        model.run_until_idle()
        why = model.done[request("a").id].failure
        assert why is not None
        assert why.endswith("cannot be loaded: its 2501 bytes are above cache.host_bytes, 2500")
        assert model.done[request("b").id].end_s


class TestHostMemory:
    def test_requests_wait_again_when_their_adapter_left(self) -> None:
        """A ready request whose adapter went for an older one's is loading, then runs."""
        model = make(host_bytes=1000)
        model.arrive(request("first", 1, output=1), 1)
        model.run_until_idle()
        model.policy.arrived(request("older", 2), 0.0)
        model.policy.arrived(request("younger", 1), 0.0)
        model.waiting[request("older").id] = (request("older", 2), 2, 0)
        model.waiting[request("younger").id] = (request("younger", 1), 2, 0)
        model.done |= {request(n).id: model.done[request("first").id] for n in ("older", "younger")}
        plan = model.plan()
        assert [(2, (1,))] == [(load.adapter_id, load.evicts) for load in plan.loads]
        assert [(0, 2)] == [(state.waiting, state.loading) for state in states(model)]
        model.run_until_idle()
        check_idle(model)

    def test_adapter_larger_than_foretold_makes_an_idle_one_go(self) -> None:
        """With 1,500 bytes loaded instead of 1,000 the budget of 2,000 holds after the next plan."""
        model = make(host_bytes=2000, true_bytes={AdapterId(2): 1500})
        for name, named in (("a", 1), ("b", 2)):
            model.arrive(request(name, named, output=1), 1)
            model.run_until_idle()
        assert (ONE,) in [plan.drops for plan in model.plans]
        assert {2} == model.host
        check(model)

    def test_blocked_load_lets_base_requests_pass_until_patience_is_spent(self) -> None:
        """While an adapter waits for room held by running requests, the base model's go on."""
        model = make(host_bytes=1000)
        limit = 2
        settings = model.settings
        model.policy.settings = replace(
            settings, admission=replace(settings.admission, overtake_limit=limit)
        )
        model.arrive(request("runs", 1), 200)
        model.step()
        model.step()
        model.arrive(request("blocked", 2), 2)
        for number in range(limit):
            model.arrive(request(f"same {number}", 1), 1)
            model.step()
        model.arrive(request("base", None), 1)
        model.arrive(request("same 9", 1), 1)
        plan = model.step()
        assert ["base"] == [admission.request_id for admission in plan.admit]
        assert Held.URGENT in [state.held for state in states(model)]


def states(model: EngineModel) -> list[LaneState]:
    """The lanes."""
    return list(model.policy.view(0.0).lanes)


class TestUnregister:
    def test_unused_adapter_is_dropped_at_once(self) -> None:
        """From host memory, by the next plan."""
        model = make()
        model.arrive(request("a", 1), 1)
        model.run_until_idle()
        model.policy.unregistered(ONE)
        assert (ONE,) == model.step().drops
        assert ONE not in model.policy._residency.entries

    def test_adapter_in_use_goes_when_its_last_request_ends(self) -> None:
        """Requests that name it run to their end."""
        model = make()
        model.arrive(request("a", 1), 5)
        model.arrive(request("b", 1), 1)
        model.step()
        model.step()
        model.policy.unregistered(ONE)
        model.run_until_idle()
        assert all(done.end_s for done in model.done.values())
        assert (ONE,) == model.step().drops
        check_idle(model)

    @pytest.mark.parametrize("is_broken", [False, True])
    def test_adapter_that_is_loading_goes_when_the_load_ends(self, is_broken: bool) -> None:
        """However it ends."""
        model = make()
        model.load_s = 1e9
        model.arrive(request("a", 1), 1)
        model.step()
        model.abort(request("a").id)
        model.policy.unregistered(ONE)
        assert Tier.LOADING is model.policy._residency.entries[ONE].tier
        model.end_load(ONE, is_broken=is_broken)
        model.step()
        assert ONE not in model.policy._residency.entries
        assert ONE not in model.host


def test_lanes_are_cut_while_requests_wait_and_run() -> None:
    """A cut moves waiting requests; what runs keeps what it borrowed and gives it back."""
    settings = PolicySettings(lanes=LaneSettings(first_after=4, period_s=5.0))
    model = EngineModel(settings, replace(LIMITS, seats=2))
    for number in range(12):
        model.arrive(request(f"r{number}", tokens=(10, 900)[number % 2]), 3)
        model.step()
        check(model)
    assert 2 <= len(model.policy.view(0.0).lanes)
    model.run_until_idle()
    check_idle(model)


def story(name: Preset, requests: list[tuple[int, int, int]]) -> list[StepPlan]:
    """The plans of one run."""
    settings = preset(name)
    settings = replace(
        settings,
        lanes=replace(settings.lanes, first_after=4),
        cache=replace(settings.cache, host_bytes=3000),
    )
    model = EngineModel(settings, LIMITS)
    model.register(*(adapter(number, 1000) for number in range(8)))
    for number, (named, tokens, output) in enumerate(requests):
        model.arrive(request(f"r{number}", named, tokens), output)
        model.step()
    model.run_until_idle()
    return model.plans


@given(
    name=st.sampled_from(Preset),
    requests=st.lists(
        st.tuples(st.integers(0, 7), st.integers(1, 500), st.integers(1, 9)), max_size=30
    ),
)
def test_same_facts_same_plans(name: Preset, requests: list[tuple[int, int, int]]) -> None:
    """Two policies that are told the same answer the same."""
    assert story(name, requests) == story(name, requests)


def test_plans_do_not_depend_on_the_hash_seed() -> None:
    """Nor on the process: two interpreters with different string hashes plan alike."""
    program = (
        "from tests.policy.test_scheduler import story, Preset\n"
        "requests = [(n * n % 8, 1 + n * 37 % 400, 1 + n % 9) for n in range(60)]\n"
        "print([story(name, requests) for name in Preset])"
    )
    runs = [
        subprocess.run(
            [sys.executable, "-c", program],
            cwd=ROOT,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": f"{ROOT}{os.pathsep}{ROOT / 'src'}"},
            capture_output=True,
            text=True,
            check=True,
        ).stdout
        for seed in ("1", "2")
    ]
    assert "StepPlan" in runs[0]
    assert runs[0] == runs[1]


def test_interval_is_told_as_the_reason() -> None:
    """Where a step admits nobody by rule, each lane's head waits for that."""
    model = EngineModel(preset(Preset.SLORA), LIMITS)
    model.arrive(request("a"), 5)
    assert 1 == len(model.step().admit)
    model.arrive(request("b"), 1)
    assert () == model.policy.step(0.1, StepBudget(3, 4000, 512)).admit
    assert [Held.INTERVAL] == [state.held for state in states(model)]


def test_a_failed_promotion_ends_the_tier_only_if_it_says_so() -> None:
    """One copy that cannot be made costs its adapter; with `is_final` there are none any more."""
    engine = EngineModel(PolicySettings(device=DeviceSettings(headroom_share=0.0)), ON_DEVICE)
    engine.preload(*(adapter(number, 1600) for number in (1, 2)))
    for is_final, limit in ((False, 100), (True, 0)):
        (promotion,) = engine.plan().promotions
        engine.end_promotion(promotion, is_failed=True, is_final=is_final)
        engine.now_s += 1.0
        assert limit == engine.policy.view(engine.now_s).device.limit_blocks
    assert 1 == engine.policy.view(engine.now_s).device.demotions[DemotionReason.FAILED]


def test_what_is_known_can_be_looked_at() -> None:
    """The adapters by id; a request's estimates, and since which step it runs."""
    model = make()
    assert {1, 2, 3} == set(model.policy.adapters)
    asked = request("a", tokens=10, output=5)
    model.arrive(asked, 5)
    waits = model.policy.request(asked.id)
    assert (asked, 10, None) == (waits.request, waits.prefill_tokens, waits.admitted_step)
    model.step()
    assert 1 == model.policy.request(asked.id).admitted_step


def test_the_largest_copy_is_that_of_all_blocks_but_the_headroom() -> None:
    """A tenth of 100 blocks of 1,600 bytes stays idle."""
    view = EngineModel(PolicySettings(), ON_DEVICE).policy.device(0.0)
    assert (90, 144_000) == (view.limit_blocks, view.limit_bytes)
