"""The published policies, each by what it is known for."""

from dataclasses import replace

import pytest

from chameleon_lora.policy.admission.rules import Bypass
from chameleon_lora.policy.settings import EngineLimits, Preset, preset
from tests.policy.engine_model import EngineModel, adapter, request
from tests.policy.invariants import check_idle

LIMITS = EngineLimits(seats=4, slots=1, kv_tokens=1000, kv_bytes_per_token=1000)


def make(name: Preset) -> EngineModel:
    """An engine of one slot with three adapters on disk."""
    model = EngineModel(preset(name), LIMITS, load_s=0.0)
    model.register(*(adapter(number, 1000) for number in (1, 2, 3)))
    return model


def first_steps(model: EngineModel) -> dict[str, int]:
    """In which step each request was admitted for the first time, from 1."""
    steps: dict[str, int] = {}
    for number, plan in enumerate(model.plans, 1):
        for admission in plan.admit:
            steps.setdefault(admission.request_id, number)
    return steps


@pytest.mark.parametrize("name", Preset)
def test_every_policy_serves_everybody(name: Preset) -> None:
    """Thirty requests of three adapters and the base model all end."""
    model = make(name)
    for number in range(30):
        model.arrive(request(f"r{number}", number % 4 or None, 1 + number * 7, limit=50), 5)
        model.step()
    model.run_until_idle(5000)
    check_idle(model)


class TestSlora:
    def test_admits_in_every_tenth_step(self) -> None:
        """After one was let in, those that come in steps 2 and 3 run from step 11 on."""
        model = make(Preset.SLORA)
        for name in "abc":
            model.arrive(request(name), 30)
            model.step()
        for _ in range(20):
            model.step()
        assert {"a": 1, "b": 11, "c": 11} == first_steps(model)

    def test_does_not_wait_for_the_tenth_step_once_nobody_was_let_in(self) -> None:
        """One that comes in step 15, long after the last admission, runs at once."""
        model = make(Preset.SLORA)
        model.arrive(request("a"), 30)
        for _ in range(14):
            model.step()
        model.arrive(request("b"), 1)
        model.step()
        assert {"a": 1, "b": 15} == first_steps(model)

    def test_an_empty_engine_admits_at_once(self) -> None:
        """When everybody has ended the next does not wait for the tenth step."""
        model = make(Preset.SLORA)
        for name in "ab":
            model.arrive(request(name), 1)
            model.step()
        assert {"a": 1, "b": 2} == first_steps(model)

    @pytest.mark.parametrize(("limit", "expected"), [(489, 1), (490, 3)])
    def test_reserves_for_the_longest_possible_output(self, limit: int, expected: int) -> None:
        """Two that may take 499 of 1,000 tokens each run together; at 500 one after the other."""
        model = make(Preset.SLORA)
        for name in "ab":
            model.arrive(request(name, limit=limit), 2)
        for _ in range(20):
            model.step()
        assert {"a": 1, "b": expected} == first_steps(model)

    def test_nothing_is_kept_on_the_device_after_use(self) -> None:
        """When its last request has ended the adapter is in host memory only."""
        model = make(Preset.SLORA)
        model.arrive(request("a", 1), 1)
        model.run_until_idle()
        assert () == model.step().drops
        assert ({1}, [None]) == (model.host, model.slots)

    def test_reads_the_next_adapters_halfway_between_two_admissions(self) -> None:
        """One that waits from step 2 on is copied into KV blocks in step 6, for step 11."""
        limits = replace(LIMITS, slots=2, block_bytes=100)
        model = EngineModel(preset(Preset.SLORA), limits)
        model.preload(*(adapter(number, 1000) for number in (1, 2)))
        model.arrive(request("a", 1), 30)
        model.step()
        model.arrive(request("b", 2), 1)
        for _ in range(12):
            model.step()
        begun = [n for n, plan in enumerate(model.plans, 1) if plan.promotions]
        assert ([6], 11) == (begun, first_steps(model)["b"])

    def test_nobody_passes(self) -> None:
        """A request of the resident adapter waits behind one of another."""
        model = make(Preset.SLORA)
        model.arrive(request("a", 1), 15)
        for _ in range(10):
            model.step()
        model.arrive(request("b", 2), 1)
        model.arrive(request("c", 1), 1)
        model.run_until_idle()
        steps = first_steps(model)
        assert steps["b"] <= steps["c"]


class TestVllm:
    def test_whoever_has_a_slot_passes(self) -> None:
        """A request of the resident adapter passes one of another, however long it is."""
        model = make(Preset.VLLM)
        model.arrive(request("a", 1), 15)
        model.step()
        model.step()
        model.arrive(request("b", 2), 1)
        model.arrive(request("c", 1, output=500), 1)
        model.run_until_idle()
        steps = first_steps(model)
        assert steps["c"] < steps["b"]

    def test_adapters_are_read_one_at_a_time(self) -> None:
        """The second load begins when the first has ended."""
        model = make(Preset.VLLM)
        model.load_s = 1e9
        for number in (1, 2):
            model.arrive(request(f"r{number}", number), 1)
        assert [1, 0] == [len(model.step().loads) for _ in range(2)]


class TestSjf:
    def test_shortest_output_first(self) -> None:
        """Of three that wait, by foretold output."""
        model = make(Preset.SJF)
        for number in range(4):
            model.arrive(request(f"runs {number}", output=1), 3)
        model.step()
        for name, output in (("long", 90), ("short", 3), ("middle", 30)):
            model.arrive(request(name, output=output), 3)
        model.step()
        head = model.policy._backlog.lanes[0].head()
        assert head is not None
        assert "short" == head.request.id

    def test_age_outweighs_length_in_time(self) -> None:
        """After a minute a long request stands before a short one that has just come."""
        model = make(Preset.SJF)
        model.arrive(request("long", 1, output=400), 1)
        model.now_s += 60.0
        model.arrive(request("short", 1, output=2), 1)
        states = model.policy._backlog.states
        assert states[request("long").id].order < states[request("short").id].order


def test_paper_admits_from_the_smallest_lane_up() -> None:
    """PAPER is Chameleon with the paper's own orders and bypass."""
    assert Bypass.PAPER is preset(Preset.PAPER).admission.bypass
    assert preset(Preset.PAPER).cache == preset(Preset.CHAMELEON).cache


def test_the_ablations_differ_from_chameleon_in_one_half_each() -> None:
    """The cache alone has our cache under vLLM's admission; the scheduler alone the other halves."""
    ours, vllm = preset(Preset.CHAMELEON), preset(Preset.VLLM)
    cache_only = replace(ours, lanes=vllm.lanes, admission=vllm.admission)
    scheduler_only = replace(ours, cache=vllm.cache, device=vllm.device, prefetch=vllm.prefetch)
    assert cache_only == preset(Preset.CACHE_ONLY)
    assert scheduler_only == preset(Preset.SCHEDULER_ONLY)
