"""The policy with adapters in idle KV blocks, under any order of facts, driven by the engine model."""

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import initialize, precondition, rule

from chameleon_lora.policy.memory.groups import HOLDERS
from chameleon_lora.policy.memory.headroom import DeviceSettings
from chameleon_lora.policy.plan import StepPlan
from chameleon_lora.policy.request import AdapterId
from chameleon_lora.policy.settings import EngineLimits, PolicySettings
from tests.policy.engine_model import EngineModel
from tests.policy.invariants import check, check_rate
from tests.policy.test_scheduler_machine import (
    LIMITS,
    NEVER_S,
    PICKS,
    SchedulerMachine,
    policies,
)

BLOCK_BYTES = 40  # adapters of 500 to 3,700 bytes fill 13 to 93 of 128 blocks
DEVICES = st.builds(
    DeviceSettings,
    max_bytes=st.sampled_from((None, None, None, None, None, 2000, 4000, 0)),
    headroom_share=st.sampled_from((0.0, 0.1, 0.5)),
    promotions_per_s=st.sampled_from((2.0, 20.0, 1000.0)),
    max_promoting=st.integers(1, 3),
)


class DeviceMachine(SchedulerMachine):
    """Beside all other facts: copies end, late or not at all, and requests take blocks."""

    @initialize(
        settings=policies(),
        limits=LIMITS,
        device=DEVICES,
        block_bytes=st.sampled_from((BLOCK_BYTES,) * 4 + (4 * BLOCK_BYTES, 0)),
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
            replace(limits, block_bytes=block_bytes),
            load_s=NEVER_S,
            promote_s=promote_s,
            batch_tokens=4096,
        )
        self.registered: list[AdapterId] = []
        self.count = 0
        for nbytes in (500, 500, 1000, 1000, 2000):
            self.register(nbytes, nbytes // 100)
        self.engine.policy.step(0.0, self.engine.room())
        self.load(5)
        for _ in range(5):
            self.plan_and_check()
            for _, promotion in self.engine.promoting:
                self.engine.end_promotion(promotion)
            self.engine.now_s += 1.0

    def load(self, count: int) -> None:
        """So many adapters are in host memory, or as many as its budget takes without evictions."""
        residency, budget = self.engine.policy._residency, self.engine.settings.cache.host_bytes
        for adapter_id in self.registered[:count]:
            entry = residency.entries[adapter_id]
            if not budget or residency.host_bytes + entry.adapter.nbytes <= budget:
                assert () == residency.try_load(entry, 0, self.engine.now_s)
                residency.loaded(entry, entry.adapter.nbytes, entry.adapter.rank)
                self.engine.host.add(adapter_id)

    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:  # type: ignore[explicit-override]  # as above
        for _ in range(steps):
            self.plan_and_check()
            self.engine._generate(0)
            self.engine._finish_copies()
            check(self.engine)
            self.engine.now_s += 0.05

    def plan_and_check(self) -> StepPlan:
        """One plan; its promotions leave what they are to leave."""
        engine = self.engine
        engine.give_back(*engine.policy._device.take_released())
        free, growth, device = engine.free_blocks, engine.growth_blocks, engine.policy._device
        headroom = device.headroom.blocks(engine.now_s)
        lent = dict(engine.lent)
        plan = engine.plan()
        for promotion in plan.promotions:
            gained = sum(lent[evicted] for evicted in promotion.evicts)
            left = free + gained - promotion.blocks
            assert left >= headroom + growth or gained >= promotion.blocks
        assert not plan.promotions or (device.block_bytes and engine.settings.device.max_bytes != 0)
        check_rate(engine)
        return plan

    @precondition(lambda self: self.engine.promoting)
    @rule(
        pick=PICKS,
        is_failed=st.sampled_from((False, False, False, True)),
        is_final=st.sampled_from((False,) * 9 + (True,)),
    )
    def end_promotion(self, pick: int, is_failed: bool, is_final: bool) -> None:
        engine, device = self.engine, self.engine.policy._device
        promotion = self.pick([promotion for _, promotion in engine.promoting], pick)
        is_called_off = promotion.serial not in device._under_way
        before = (dict(engine.lent), device.held_blocks, list(device._released))
        engine.end_promotion(promotion, is_failed=is_failed, is_final=is_final)
        if is_called_off and not (is_failed and is_final):
            assert before == (engine.lent, device.held_blocks, device._released)
        if is_failed and is_final:
            assert (0, 0) == (device.limit_blocks, device.held_blocks)

    @rule(blocks=st.integers(1, 40) | st.integers(1, 200))
    def reclaim(self, blocks: int) -> None:
        """Requests take blocks: enough are given back, in order, and no more than needed."""
        engine, device = self.engine, self.engine.policy._device
        engine.give_back(*device.take_released())
        held = dict(engine.lent)
        groups = {i: device._groups._group_of[i] for i in held}
        chosen = engine.take_blocks(blocks)
        given = sum(held[adapter_id] for adapter_id in chosen)
        assert given >= min(blocks, sum(held.values()))
        assert not chosen or given - held[chosen[-1]] < blocks
        order = [groups[adapter_id] for adapter_id in chosen]
        assert sorted(order) == order
        stay = [groups[adapter_id] for adapter_id in held.keys() - set(chosen)]
        assert not chosen or not stay or max(order) <= min(stay)
        assert set(order) <= set(HOLDERS)

    @rule()
    def reset(self) -> None:
        """The KV cache is emptied: nobody holds a block."""
        engine, device = self.engine, self.engine.policy._device
        engine.give_back(*device.take_released(), *device.reset())
        assert ({}, 0) == (engine.lent, device.held_blocks)

    @precondition(lambda self: self.registered)
    @rule(pick=PICKS, is_pinned=st.booleans())
    def pin(self, pick: int, is_pinned: bool) -> None:
        """As much is pinned as the driver lets through: host memory holds it beside one more."""
        adapter_id, policy = self.pick(self.registered, pick), self.engine.policy
        budget = self.engine.settings.cache.host_bytes
        if not budget or not is_pinned:
            policy.pin(adapter_id, is_pinned=is_pinned)

    def teardown(self) -> None:  # type: ignore[explicit-override]  # as above
        """When copies end and nothing more arrives, everything is back in its place."""
        if not hasattr(self, "engine"):
            return
        self.engine.promote_s = 0.0
        self.engine.promoting = [(0.0, promotion) for _, promotion in self.engine.promoting]
        super().teardown()
        assert [] == self.engine.promoting


TestDeviceMachine = DeviceMachine.TestCase
