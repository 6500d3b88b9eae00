"""Adapters that run from the KV blocks they lie in, without slots (ADR 0020)."""

from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from chameleon_lora.policy.admission.rules import Bypass, Order
from chameleon_lora.policy.memory.eviction import KeepRule
from chameleon_lora.policy.memory.headroom import DeviceSettings
from chameleon_lora.policy.memory.residency import CacheSettings
from chameleon_lora.policy.plan import Held
from chameleon_lora.policy.request import AdapterId, RequestId
from chameleon_lora.policy.settings import (
    ONE_LANE,
    AdmissionSettings,
    EngineLimits,
    PolicySettings,
)
from tests.policy.engine_model import EngineModel, adapter, request
from tests.policy.invariants import check, check_idle
from tests.policy.test_device_machine import BLOCK_BYTES, DEVICES
from tests.policy.test_scheduler_machine import (
    KV_TOKENS,
    LIMITS,
    NEVER_S,
    PICKS,
    SchedulerMachine,
    policies,
)

ONE, TWO = AdapterId(1), AdapterId(2)
BLOCK = 1600  # bytes, and 16 tokens of 100 bytes
NO_PROMOTIONS = DeviceSettings(max_bytes=0)
PAGED = EngineLimits(
    seats=8, slots=1, kv_tokens=1600, kv_bytes_per_token=100, block_bytes=BLOCK, is_paged=True
)


def make(*, keeps_unused: bool = True, keep: KeepRule = KeepRule.LRU) -> EngineModel:
    """100 blocks, and three adapters of 40 each in host memory; none is promoted."""
    cache = CacheSettings(keep=keep, keeps_unused=keeps_unused)
    engine = EngineModel(PolicySettings(cache=cache, device=NO_PROMOTIONS), PAGED)
    engine.preload(*(adapter(number, 40 * BLOCK, rank=64) for number in (1, 2, 3)))
    return engine


def serve(engine: EngineModel, name: str, adapter_id: int) -> None:
    """A request of this adapter comes and runs to its end."""
    engine.arrive(request(name, adapter_id), 2)
    engine.run_until_idle()


class TestRunning:
    def test_holds_its_blocks_once_for_all_its_requests(self) -> None:
        """Two requests of one adapter, 40 blocks; only the first copies it."""
        engine = make()
        engine.arrive(request("a", 1), 9)
        assert [ONE] == [activation.adapter_id for activation in engine.step().activations]
        engine.arrive(request("b", 1), 9)
        assert () == engine.step().activations
        assert ({ONE: 40}, 40) == (engine.lent, engine.policy._device.busy_blocks)

    def test_more_adapters_than_slots_run_at_a_time(self) -> None:
        """The limits name one slot; both run in the same step."""
        engine = make()
        for number in (1, 2):
            engine.arrive(request(f"r{number}", number), 9)
        engine.step()
        assert {ONE: 40, TWO: 40} == engine.lent
        assert 2 == len(engine.running)

    def test_waits_for_memory_for_its_adapter(self) -> None:
        """A third adapter of 40 blocks does not fit beside two; one of the two does."""
        engine = make()
        for number in (1, 2):
            engine.arrive(request(f"r{number}", number), 9)
        engine.step()
        engine.arrive(request("third", 3), 2)
        assert () == engine.step().admit
        assert [Held.KV_MEMORY] == [state.held for state in engine.policy.view(0.0).lanes]
        engine.run_until_idle()
        check_idle(engine)

    def test_the_base_model_needs_no_blocks(self) -> None:
        """Its request takes KV cache only."""
        engine = make()
        engine.arrive(request("a"), 9)
        engine.step()
        assert ({}, 0) == (engine.lent, engine.policy._device.busy_blocks)


class TestAfterwards:
    def test_stays_until_somebody_needs_the_memory(self) -> None:
        """Idle it keeps its 40 blocks, which requests may take at any time."""
        engine = make()
        serve(engine, "a", 1)
        assert ({ONE: 40}, 0) == (engine.lent, engine.policy._device.busy_blocks)
        assert (ONE,) == engine.take_blocks(1 + engine.free_blocks)

    def test_the_next_request_finds_it(self) -> None:
        """It is activated again, and holds the same blocks."""
        engine = make()
        serve(engine, "a", 1)
        serve(engine, "b", 1)
        assert {ONE: 40} == engine.lent
        check(engine)

    def test_goes_at_once_if_unused_ones_are_not_kept(self) -> None:
        """S-LoRA's rule: its blocks come back with the next plan, its copy in host memory stays."""
        engine = make(keeps_unused=False)
        serve(engine, "a", 1)
        assert (ONE,) == engine.step().demotions
        assert ({}, {1, 2, 3}) == (engine.lent, engine.host)

    def test_makes_way_for_another_that_is_to_run(self) -> None:
        """Of two idle ones the longest unused gives its blocks, the other stays."""
        engine = make()
        for number in (1, 2):
            serve(engine, f"r{number}", number)
        engine.arrive(request("third", 3), 9)
        engine.step()
        assert [TWO, 3] == sorted(engine.lent)

    def test_who_knows_the_future_keeps_what_comes_next(self) -> None:
        """Belady's rule: of two idle ones, that goes whose next request is further away."""
        for first_s, second_s, stays in ((5.0, 9.0, ONE), (9.0, 5.0, TWO)):
            engine = make(keep=KeepRule.BELADY)
            entries = engine.policy._residency.entries
            entries[ONE].next_use_s, entries[TWO].next_use_s = first_s, second_s
            for number in (1, 2):
                serve(engine, f"r{number}", number)
            engine.arrive(request("third", 3), 9)
            engine.step()
            assert [stays, 3] == sorted(engine.lent)


class TestPressure:
    def test_running_requests_keep_their_adapters(self) -> None:
        """Whatever requests need, blocks in use are not given back, pinned or not."""
        engine = make()
        engine.arrive(request("a", 1), 9)
        engine.step()
        engine.policy.pin(ONE, is_pinned=True)
        assert () == engine.policy._device.reclaim(1000, engine.now_s)
        engine.policy.pin(ONE, is_pinned=False)
        assert () == engine.policy._device.reclaim(1000, engine.now_s)
        assert 40 == engine.policy._device.busy_blocks

    def test_a_copy_under_way_is_used_by_the_request_that_runs(self) -> None:
        """It is not called off any more, and counts as in use; its late ack changes nothing."""
        engine = EngineModel(PolicySettings(), PAGED, promote_s=NEVER_S)
        engine.preload(adapter(1, 40 * BLOCK))
        (promotion,) = engine.plan().promotions
        engine.arrive(request("a", 1), 9)
        engine.plan()
        assert {ONE: 40} == engine.lent
        assert () == engine.policy._device.reclaim(1000, engine.now_s)
        engine.end_promotion(promotion)
        check(engine)
        engine.run_until_idle()
        check_idle(engine)


class TestDue:
    def test_infinity_without_anything_to_promote(self) -> None:
        """Nobody wishes, or the tier is off: a driver need not wake for it."""
        engine = EngineModel(PolicySettings(), PAGED)
        assert float("inf") == engine.policy._device.due_s()
        assert float("inf") == make().policy._device.due_s()

    def test_as_fast_as_the_rate_allows(self) -> None:
        """At 20 a second, a twentieth of a second after the last one began."""
        engine = EngineModel(PolicySettings(), PAGED)
        engine.preload(*(adapter(number, BLOCK) for number in (1, 2)))
        assert 0.0 == engine.policy._device.due_s()
        engine.plan()
        assert 0.05 == engine.policy._device.due_s()


class TestPassed:
    def test_steps_without_a_question_count(self) -> None:
        """A request of 10 predicted tokens has 4 left after 6 steps, asked about or not."""
        asked, told = (EngineModel(PolicySettings(), PAGED) for _ in range(2))
        for engine in (asked, told):
            engine.arrive(request("a", output=10), 10)
            engine.step()
        for _ in range(5):
            asked.step()
        told.policy.passed(5)
        left = [e.policy._backlog.left_tokens(e.policy._interval.step) for e in (asked, told)]
        assert left[0] == left[1] == {None: 5}


def crowded(bypass: Bypass, nbytes: int = 40 * BLOCK) -> EngineModel:
    """Two adapters of 40 of 100 blocks in use for 30 steps, and a head that waits for a third one's."""
    admission = AdmissionSettings(bypass=bypass, order=Order.FIFO)
    settings = PolicySettings(lanes=ONE_LANE, admission=admission, device=NO_PROMOTIONS)
    engine = EngineModel(settings, PAGED)
    engine.preload(*(adapter(number, 40 * BLOCK) for number in (1, 2)), adapter(3, nbytes))
    for number in (1, 2):
        engine.arrive(request(f"r{number}", number, output=30), 30)
    engine.step()
    engine.arrive(request("head", 3), 5)
    return engine


class TestBypass:
    @pytest.mark.parametrize(
        ("bypass", "passes"),
        [
            (Bypass.OFF, set()),
            (Bypass.PAPER, {"base", "short"}),
            (Bypass.BACKFILL, {"base", "short"}),
            (Bypass.ANY, {"base", "short", "long"}),
        ],
    )
    def test_who_ends_before_the_memory_comes_free_passes(
        self, bypass: Bypass, passes: set[str]
    ) -> None:
        """With an adapter in use or none: 5 and 28 steps are less than the 29 that are left, 60 are not."""
        engine = crowded(bypass)
        for name, number, output in (("long", 2, 60), ("base", None, 28), ("short", 1, 5)):
            engine.arrive(request(name, number, output=output), output)
        engine.step()
        assert {"r1", "r2", *passes} == engine.running.keys()
        check(engine)
        engine.run_until_idle()
        check_idle(engine)

    def test_who_lacks_memory_for_itself_is_not_passed(self) -> None:
        """A prompt that would not fit without its adapter either waits for requests to end, in order."""
        engine = crowded(Bypass.PAPER)
        engine.abort(RequestId("head"))
        engine.arrive(request("large", 1, tokens=16 * 30), 5)
        engine.arrive(request("short", 1), 5)
        engine.step()
        assert {"r1", "r2"} == engine.running.keys()

    def test_who_breaks_the_promise_makes_way(self) -> None:
        """Predicted to end after 5 steps, it keeps 40 blocks when the head's 70 would be free but for it."""
        engine = crowded(Bypass.PAPER, 70 * BLOCK)
        engine.arrive(request("late", 1, output=5, limit=200), 100)
        while "r1" in engine.running:
            assert () == engine.step().squash
        assert ("late",) == engine.step().squash
        assert "head" in {admission.request_id for admission in engine.step().admit}
        engine.run_until_idle()
        check_idle(engine)

    def test_who_broke_it_before_stays(self) -> None:
        """Nobody is squashed where the settings say so."""
        engine = crowded(Bypass.PAPER, 70 * BLOCK)
        engine.policy.settings = replace(
            engine.policy.settings,
            admission=replace(engine.policy.settings.admission, squash_limit=0),
        )
        engine.arrive(request("late", 1, output=5, limit=200), 100)
        engine.run_until_idle()
        assert 0 == engine.squashed


class PagedMachine(SchedulerMachine):
    """All facts, at an engine without slots: memory is never exceeded, nobody runs without blocks."""

    @initialize(
        settings=policies(),
        limits=LIMITS,
        device=DEVICES,
        block_bytes=st.sampled_from((BLOCK_BYTES, BLOCK_BYTES, 4 * BLOCK_BYTES)),
        promote_s=st.sampled_from((0.0, 0.1, NEVER_S)),
    )
    def start(  # type: ignore[explicit-override]  # typing.override: Python 3.12
        self,
        settings: PolicySettings,
        limits: EngineLimits,
        device: DeviceSettings,
        block_bytes: int,
        promote_s: float,
    ) -> None:
        self.engine = EngineModel(
            replace(settings, device=device),
            replace(limits, block_bytes=block_bytes, is_paged=True),
            load_s=NEVER_S,
            promote_s=promote_s,
            batch_tokens=4 * KV_TOKENS,
        )
        self.registered: list[AdapterId] = []
        self.count = 0
        for nbytes in (500, 1000, 2000):
            self.register(nbytes, nbytes // 100)

    @precondition(lambda self: self.engine.promoting)
    @rule(
        pick=PICKS,
        is_failed=st.sampled_from((False, False, False, True)),
        is_final=st.sampled_from((False, False, True)),
    )
    def end_promotion(self, pick: int, is_failed: bool, is_final: bool) -> None:
        """Late, perhaps after a request began to run with the adapter."""
        promotion = self.pick([promotion for _, promotion in self.engine.promoting], pick)
        self.engine.end_promotion(promotion, is_failed=is_failed, is_final=is_final)

    @rule()
    def empty(self) -> None:
        """The KV cache is emptied, but for what batches run from."""
        chosen = self.engine.policy.cache_emptied()
        assert not self.engine.in_use & set(chosen)
        self.engine.give_back(*chosen)
        assert self.engine.lent.keys() == self.engine.in_use

    @rule(blocks=st.integers(1, 200))
    def reclaim(self, blocks: int) -> None:
        """Requests take blocks: idle adapters give theirs, those in use give none."""
        engine = self.engine
        chosen = engine.take_blocks(blocks)
        assert not engine.in_use & set(chosen)

    @precondition(lambda self: self.registered)
    @rule(pick=PICKS, is_pinned=st.booleans())
    def pin(self, pick: int, is_pinned: bool) -> None:
        """Where host memory has no bound, for a pinned adapter never leaves it."""
        if not self.engine.settings.cache.host_bytes:
            adapter_id = self.pick(self.registered, pick)
            self.engine.policy.pin(adapter_id, is_pinned=is_pinned)

    def teardown(self) -> None:  # type: ignore[explicit-override]  # as above
        """When copies end and nothing more arrives, everybody is served."""
        if not hasattr(self, "engine"):
            return
        self.engine.promote_s = 0.0
        self.engine.promoting = [(0.0, promotion) for _, promotion in self.engine.promoting]
        super().teardown()
        assert 0 == self.engine.policy._device.busy_blocks


TestPagedMachine = PagedMachine.TestCase
