"""Adapters in idle KV blocks: who is copied there, who gives blocks back, when and for whom."""

from dataclasses import replace

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.memory.eviction import KeepRule
from chameleon_lora.policy.memory.groups import Group
from chameleon_lora.policy.memory.headroom import DeviceSettings
from chameleon_lora.policy.memory.residency import CacheSettings, Residency
from chameleon_lora.policy.memory.slots import SlotTable
from chameleon_lora.policy.plan import DemotionReason, KvBlocks, Promotion, StepPlan
from chameleon_lora.policy.request import AdapterId
from chameleon_lora.policy.settings import EngineLimits, PolicySettings, Preset, preset
from tests.policy.engine_model import EngineModel, adapter, request
from tests.policy.invariants import check, check_idle, check_rate

BLOCK = 100
EAGER = DeviceSettings(headroom_share=0.0, promotions_per_s=1e6, max_promoting=99)
LRU = CacheSettings(keep=KeepRule.LRU)


def make(
    *sizes: int, count: int = 100, settings: DeviceSettings = EAGER, cache: CacheSettings = LRU
) -> tuple[Residency, list[Entry]]:
    """Adapters of so many blocks in host memory, each used later than the one before."""
    residency = Residency(cache, SlotTable(2), 0, settings, KvBlocks(count, BLOCK))
    entries = [residency.register(adapter(n, size * BLOCK)) for n, size in enumerate(sizes)]
    for entry in entries:
        bring(residency, entry)
        entry.last_use_s = float(entry.adapter.id)
    return residency, entries


def bring(residency: Residency, entry: Entry, *, is_packed: bool = True) -> None:
    """The adapter is in host memory."""
    assert () == residency.try_load(entry, 0, 0.0)
    residency.loaded(entry, entry.adapter.nbytes, 8, is_packed=is_packed)


def promote(residency: Residency, now_s: float = 0.0, free: int = 100) -> list[int]:
    """Who is promoted while there is room, from `now_s` on; the copies are complete."""
    promoted = []
    while found := residency.device.plan(now_s, free - residency.device.held_blocks, 0):
        residency.device.promoted(found[0].serial)
        promoted.append(int(found[0].adapter_id))
        now_s += 1.0
    return promoted


def reclaim(residency: Residency, blocks: int) -> list[int]:
    """Who gives back so many blocks."""
    return [int(adapter_id) for adapter_id in residency.device.reclaim(blocks, 50.0)]


class TestPromotion:
    def test_takes_idle_blocks_at_the_exact_size(self) -> None:
        """Of 250 bytes the third block holds half; it is under way until it is told complete."""
        residency, (a,) = make(1)
        a.adapter = adapter(0, 250)
        (found,) = residency.device.plan(0.0, 100, 0)
        assert Promotion(AdapterId(0), 1, 3, ()) == found
        assert (3, False, 3) == (a.blocks, a.is_on_device, residency.device.held_blocks)
        residency.device.promoted(1)
        assert a.is_on_device

    @pytest.mark.parametrize(
        ("free", "need", "expected"), [(20, 0, 1), (19, 0, 0), (25, 5, 1), (25, 6, 0), (0, 5, 0)]
    )
    def test_leaves_headroom_and_what_the_batch_takes(
        self, free: int, need: int, expected: int
    ) -> None:
        """10 blocks of 100 stay idle, besides those that requests take in this step."""
        residency, _ = make(10, settings=replace(EAGER, headroom_share=0.1))
        assert expected == len(residency.device.plan(0.0, free, need))

    def test_the_longest_waiting_request_comes_first(self) -> None:
        """Then pinned ones, then those nobody waits for by their worth."""
        residency, (_, b, c, d) = make(1, 1, 1, 1)
        for entry, oldest in ((b, 7), (c, 5)):
            residency.queue(entry, 1)
            entry.oldest = oldest
        residency.pin(d, is_pinned=True)
        assert [2, 1, 3, 0] == promote(residency)

    def test_one_too_large_for_now_lets_another_pass(self) -> None:
        """A pinned adapter that the idle blocks cannot hold does not keep others out."""
        residency, (a, _) = make(60, 1)
        residency.pin(a, is_pinned=True)
        assert [1] == promote(residency, free=50)

    def test_replaces_who_is_worth_less(self) -> None:
        """Longest unused ones go for it, no more than needed; those worth more stay."""
        residency, entries = make(3, 3, 3, 3, count=10)
        for entry in entries[:3]:
            residency.queue(entry, 1)
            entry.oldest = 1
        assert [0, 1, 2] == promote(residency, free=10)
        for entry in entries[:3]:
            residency.queue(entry, -1)
        (found,) = residency.device.plan(99.0, 1, 0)
        assert Promotion(AdapterId(3), 4, 3, (AdapterId(0),)) == found
        assert 1 == residency.device.demotions[DemotionReason.REPLACED]

    def test_does_not_replace_who_is_worth_as_much(self) -> None:
        """Two equal adapters never take turns."""
        residency, (a, b) = make(3, 3, count=3)
        b.last_use_s = a.last_use_s
        assert 1 == len(promote(residency, free=3))
        assert () == residency.device.plan(99.0, 0, 0)

    def test_does_not_replace_those_in_use_or_waited_for(self) -> None:
        """Idle ones only, though others were used longer ago."""
        residency, (a, b) = make(3, 3, count=3)
        residency.queue(a, 1)
        assert [0] == promote(residency, free=3)
        residency.queue(b, 1)
        assert () == residency.device.plan(99.0, 0, 0)

    def test_in_vain_ages_nobody(self) -> None:
        """GDSF's clock moves only when somebody went."""
        residency, (a, b) = make(2, 5, count=5, cache=CacheSettings(keep=KeepRule.GDSF))
        residency.queue(a, 1)
        assert [0] == promote(residency, free=5)
        residency.queue(a, -1)
        b.uses_s.extend((90.0, 91.0))
        assert () == residency.device.plan(99.0, 0, 0)
        assert 0.0 == residency._evictor.inflation

    def test_no_more_than_max_promoting_at_a_time(self) -> None:
        """The third begins when the first has ended."""
        residency, _ = make(1, 1, 1, settings=replace(EAGER, max_promoting=2))
        device = residency.device
        assert [1, 1, 0] == [len(device.plan(float(n), 90, 0)) for n in range(3)]
        device.promoted(1)
        assert 1 == len(device.plan(3.0, 90, 0))

    def test_no_more_than_promotions_per_s(self) -> None:
        """At 2 a second the next begins after half a second."""
        residency, _ = make(1, 1, 1, settings=replace(EAGER, promotions_per_s=2.0))
        begun = [len(residency.device.plan(t, 90, 0)) for t in (0.0, 0.4, 0.5, 0.9, 1.0)]
        assert [1, 0, 1, 0, 1] == begun

    def test_what_is_leaving_is_not_promoted(self) -> None:
        """An adapter withdrawn while requests wait for it is soon gone."""
        residency, (a,) = make(1)
        residency.queue(a, 1)
        a.is_leaving = True
        assert [] == promote(residency)

    def test_what_is_not_packed_is_not_promoted(self) -> None:
        """Blocks hold a plain run of bytes only."""
        residency, _ = make()
        bring(residency, residency.register(adapter(0, BLOCK)), is_packed=False)
        assert [] == promote(residency)

    @pytest.mark.parametrize("nbytes", [0, 91 * BLOCK, 10**12])
    def test_what_never_fits_is_never_tried(self, nbytes: int) -> None:
        """Beyond the pool less its headroom, or empty: others are promoted at once instead."""
        residency, (a, b) = make(1, 1, settings=replace(EAGER, headroom_share=0.1))
        residency.evict(a)
        a.adapter = adapter(0, nbytes)
        bring(residency, a)
        residency.pin(a, is_pinned=True)
        assert not residency.device.can_hold(nbytes)
        assert [b.adapter.id] == promote(residency)
        assert [] == residency.device._groups.sample(a_group(a), 9)


def a_group(entry: Entry) -> Group:
    """Where it would be, could it be held."""
    return Group.WISHED if entry.is_pinned else Group.WISHED_IDLE


class TestGivingBack:
    def test_reclaim_stops_when_it_is_enough(self) -> None:
        """Longest unused first: for three blocks two adapters of two go, the third stays."""
        residency, _ = make(2, 2, 2)
        promote(residency)
        assert [0, 1] == reclaim(residency, 3)
        assert 2 == residency.device.held_blocks
        assert [2] == reclaim(residency, 99)
        assert [] == reclaim(residency, 1)
        assert {DemotionReason.DEMAND: 3} == residency.device.demotions

    def test_idle_then_queued_then_busy_then_pinned_then_promoting(self) -> None:
        """What is lost by it grows from group to group."""
        residency, (idle, queued, busy, pinned, promoting) = make(1, 1, 1, 1, 1)
        residency.queue(promoting, 1)
        (found,) = residency.device.plan(0.0, 99, 0)
        residency.queue(promoting, -1)
        assert promoting.adapter.id == found.adapter_id
        promote(residency, 1.0)
        slot = residency.try_find_slot((), 9.0)
        assert slot is not None
        residency.activate(busy, slot)
        residency.queue(busy, 1)
        residency.start(busy, 0.0)
        residency.queue(queued, 1)
        residency.pin(pinned, is_pinned=True)
        for entry in (idle, queued, busy, pinned, promoting):
            assert [entry.adapter.id] == reclaim(residency, 1)

    def test_reclaims_from_many(self) -> None:
        """Beyond a sample's size too, all that are needed go."""
        residency, _ = make(*[1] * 80)
        promote(residency)
        assert 75 == len(set(reclaim(residency, 75)))
        assert 5 == residency.device.held_blocks

    def test_leaving_host_memory_gives_blocks_back_once(self) -> None:
        """They are told with the next plan, and by nothing else."""
        residency, (a,) = make(2)
        promote(residency)
        residency.evict(a)
        assert (0, 0) == (a.blocks, residency.device.held_blocks)
        assert [] == reclaim(residency, 5)
        assert (a.adapter.id,) == residency.device.take_released()
        assert () == residency.device.take_released()
        assert {DemotionReason.DROPPED: 1} == residency.device.demotions

    def test_reset_empties(self) -> None:
        """Everybody's blocks are given back at once; copies under way are called off."""
        residency, _ = make(1, 1, 1)
        residency.device.plan(0.0, 99, 0)
        residency.device.plan(1.0, 99, 0)
        residency.device.promoted(1)
        assert 2 == len(residency.device.reset())
        assert 0 == residency.device.held_blocks
        assert () == residency.device.take_released()

    @pytest.mark.parametrize("how", ["reclaim", "drop", "reset"])
    def test_late_ack_of_a_copy_called_off_changes_nothing(self, how: str) -> None:
        """Even while the adapter's next copy is under way."""
        residency, (a,) = make(2)
        device = residency.device
        device.plan(0.0, 99, 0)
        {"reclaim": lambda: reclaim(residency, 1), "drop": lambda: device.drop(a),
         "reset": device.reset}[how]()  # fmt: skip
        device.plan(1.0, 99, 0)
        device.promoted(1)
        device.promotion_failed(1, is_final=False)
        assert (2, 2, True) == (a.blocks, a.promotion, a.is_packed)
        device.promoted(2)
        assert a.is_on_device


class TestFailure:
    def test_is_not_tried_again(self) -> None:
        """The adapter stays in host memory; others are promoted."""
        residency, (a, b) = make(1, 1)
        (found,) = residency.device.plan(0.0, 99, 0)
        assert b.adapter.id == found.adapter_id
        residency.device.promotion_failed(found.serial, is_final=False)
        assert (b.adapter.id,) == residency.device.take_released()
        assert [a.adapter.id] == promote(residency, 1.0)
        assert b.is_in_host
        assert not b.is_packed
        assert {DemotionReason.FAILED: 1} == residency.device.demotions

    def test_final_turns_the_tier_off_for_good(self) -> None:
        """All blocks are given back, and nothing is promoted, reclaimed or kept any more."""
        residency, (a, b, c) = make(1, 1, 1)
        device = residency.device
        device.plan(0.0, 99, 0)
        device.plan(1.0, 99, 0)
        device.promotion_failed(2, is_final=True)
        assert {b.adapter.id, c.adapter.id} == set(device.take_released())
        device.promotion_failed(1, is_final=True)
        residency.pin(a, is_pinned=True)
        assert [] == promote(residency, 9.0)
        assert ([], 0) == (reclaim(residency, 9), device.held_blocks)
        assert not device.can_hold(1)


class TestScheduler:
    LIMITS = EngineLimits(
        seats=4, slots=2, kv_tokens=1600, kv_bytes_per_token=100, block_bytes=BLOCK
    )

    def engine(
        self, settings: PolicySettings | None = None, block_bytes: int = BLOCK
    ) -> EngineModel:
        """Eight adapters of ten blocks on disk; 100 blocks."""
        engine = EngineModel(
            settings or PolicySettings(), replace(self.LIMITS, block_bytes=block_bytes)
        )
        engine.register(*(adapter(number, 10 * BLOCK) for number in range(1, 9)))
        return engine

    def serve(self, engine: EngineModel) -> list[StepPlan]:
        """Forty requests of all adapters, some of them large, while steps go on."""
        for number in range(40):
            tokens = 900 if number % 7 == 0 else 20 + number
            engine.arrive(request(f"r{number}", 1 + number * 5 % 8, tokens), 12)
            engine.step()
            check(engine)
        engine.run_until_idle(5000)
        check_idle(engine)
        check_rate(engine)
        return engine.plans

    def test_same_facts_same_plans(self) -> None:
        """Two runs are alike, promotions and demotions included."""
        first, second = (self.serve(self.engine()) for _ in range(2))
        assert sum(len(plan.promotions) for plan in first) > 8
        assert first == second

    def test_requests_are_admitted_as_if_no_block_were_lent(self) -> None:
        """The cache neither delays nor refuses anybody: the rest of each plan is the same."""
        found = [replace(plan, promotions=(), demotions=()) for plan in self.serve(self.engine())]
        assert self.serve(self.engine(block_bytes=0)) == found

    @pytest.mark.parametrize("name", [Preset.VLLM, Preset.SJF])
    def test_published_policies_have_it_off(self, name: Preset) -> None:
        """Their plans are those of an engine whose blocks cannot hold adapters."""
        plans = self.serve(self.engine(preset(name)))
        assert self.serve(self.engine(preset(name), block_bytes=0)) == plans
        assert not any(plan.promotions or plan.demotions for plan in plans)

    def test_slora_promotes_for_waiting_requests_only(self) -> None:
        """When nobody names an adapter any more it holds no block."""
        engine = self.engine(preset(Preset.SLORA))
        plans = self.serve(engine)
        assert sum(len(plan.promotions) for plan in plans) > 8
        for _ in range(40):
            engine.step()
        assert {} == engine.lent

    def test_max_bytes_bounds_what_is_held(self) -> None:
        """2,500 bytes hold two adapters of ten blocks."""
        engine = self.engine(PolicySettings(device=DeviceSettings(max_bytes=2500)))
        self.serve(engine)
        assert (25, 20) == (engine.policy._device.limit_blocks, engine.policy._device.held_blocks)

    def test_a_pinned_cold_adapter_is_read_and_promoted(self) -> None:
        """Pinning is enough, no request names it; of complete copies it goes last under pressure."""
        engine = self.engine()
        engine.policy.pin(AdapterId(3), is_pinned=True)
        for _ in range(20):
            engine.step()
        entry = engine.policy._residency.entries[AdapterId(3)]
        assert entry.is_on_device
        self.serve(engine)
        assert len(engine.lent) > 1
        for _, promotion in engine.promoting:
            engine.end_promotion(promotion)
        chosen = engine.take_blocks(99 - engine.used_blocks)
        assert AdapterId(3) == chosen[-1]

    def test_unpinned_it_is_as_any_other(self) -> None:
        """It is kept, but may go."""
        engine = self.engine()
        engine.policy.pin(AdapterId(3), is_pinned=True)
        for _ in range(20):
            engine.step()
        engine.policy.pin(AdapterId(3), is_pinned=False)
        assert engine.policy._residency.entries[AdapterId(3)].is_on_device
        assert (AdapterId(3),) == engine.take_blocks(1)

    def test_unregistering_gives_blocks_back(self) -> None:
        """With the drop, in the same plan, once."""
        engine = self.engine()
        self.serve(engine)
        gone = next(iter(engine.lent))
        engine.policy.unregistered(gone)
        plan = engine.plan()
        assert ((gone,), (gone,)) == (plan.drops, plan.demotions)
        assert not [p for p in engine.plans[-2:] if gone in p.drops and p is not plan]
        check(engine)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("max_bytes", -1),
        ("headroom_share", -0.1),
        ("headroom_share", 1.1),
        ("promotions_per_s", 0.0),
        ("max_promoting", 0),
    ],
)
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    """The message names the setting, its value and what is allowed."""
    with pytest.raises(ConfigError, match=rf"device\.{name} is {value}; use"):
        DeviceSettings(**{name: value})  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("max_bytes", "share", "expected"),
    [(None, 0.0, 100), (None, 0.1, 90), (1 << 60, 0.1, 90), (0, 0.1, 0), (950, 0.1, 9)],
)
def test_limit_of_what_adapters_hold(max_bytes: int | None, share: float, expected: int) -> None:
    """-1 is all but the headroom, 0 nothing, else whole blocks of so many bytes."""
    settings = DeviceSettings(max_bytes=max_bytes, headroom_share=share)
    residency, _ = make(settings=settings)
    assert expected == residency.device.limit_blocks
