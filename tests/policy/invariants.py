"""What must hold of the policy after every fact and every step, checked against the engine model."""

from collections import Counter
from collections.abc import Iterable

from chameleon_lora.policy.memory.entry import NEVER, Tier
from chameleon_lora.policy.memory.groups import Group, _group_of
from chameleon_lora.policy.memory.residency import Residency
from chameleon_lora.policy.memory.slots import PagedSlots
from chameleon_lora.policy.queues.lanes import RequestState, Stage, _Ready
from chameleon_lora.policy.request import AdapterId
from chameleon_lora.policy.scheduler import Scheduler
from tests.policy.engine_model import EngineModel


def check(engine: EngineModel) -> None:
    """Every invariant of Scheduler and its parts, and that they tell of the engine as it is."""
    policy = engine.policy
    check_requests(engine)
    check_lanes(policy)
    check_shares(policy)
    check_quota(policy)
    check_adapters(policy)
    check_engine_agrees(engine)
    check_device(engine)
    check_prefetch(policy)


def check_requests(engine: EngineModel) -> None:
    """No request is lost or held twice; each is in the stage it is in at the engine."""
    policy, backlog = engine.policy, engine.policy._backlog
    failing = {failure.request_id for failure in policy._fail}
    assert not engine.running.keys() & engine.waiting.keys()
    assert backlog.states.keys() == (engine.running.keys() | engine.waiting.keys()) - failing
    assert backlog.running.keys() == engine.running.keys()
    limit = policy.settings.admission.overtake_limit
    for request_id, state in backlog.states.items():
        adapter_id = state.request.adapter_id
        is_ready = adapter_id is None or policy._residency.entries[adapter_id].is_in_host
        waits_in = Stage.READY if is_ready else Stage.LOADING
        assert (Stage.RUNNING if request_id in engine.running else waits_in) is state.stage
        assert (state.charge is not None) is (state.stage is Stage.RUNNING)
        assert limit is None or state.overtaken <= 2 * limit
        assert state.squashes <= squash_bound(engine, state)


def squash_bound(engine: EngineModel, state: RequestState) -> int:
    """Requeues by the engine itself count as squashes too, so only the policy's are bounded."""
    own = engine.policy.settings.admission.squash_limit
    return own + engine.preemptions[state.request.id]


def check_lanes(policy: Scheduler) -> None:
    """Each ready request stands in its lane once, in both orders; nothing is counted below zero."""
    backlog = policy._backlog
    ready = [t for t in backlog.states.values() if t.stage is Stage.READY]
    assert len(ready) == sum(lane.ready for lane in backlog.lanes)
    for index, lane in enumerate(backlog.lanes):
        mine = Counter(t.request.id for t in ready if t.lane == index)
        assert mine == members([lane._order])
        assert mine == members(lane._by_adapter.values())
        assert lane.ready == mine.total()
        places = [lane.place(state) for state in ready if state.lane == index]
        assert min(places, default=None) == (lane.place(head) if (head := lane.head()) else None)
    by_age = Counter(t.request.id for _, t in backlog._by_age if t.stage is Stage.READY)
    assert by_age == Counter(t.request.id for t in ready)
    assert all(state.waiting >= 0 <= state.loading for state in policy.view(0.0).lanes)


def members(heaps: Iterable[_Ready]) -> Counter[str]:
    """The ready requests in these heaps."""
    entries = [entry for ready in heaps for heap in ready._heaps.values() for entry in heap._heap]
    return Counter(str(t.request.id) for _, _, t in entries if t.stage is Stage.READY)


def check_shares(policy: Scheduler) -> None:
    """Each share counts its requests that wait, and nothing is kept of requests without one."""
    states = [t for t in policy._backlog.states.values() if t.stage is not Stage.RUNNING]
    waiting = Counter(share.name for t in states if (share := t.request.share))
    assert waiting == policy._backlog._shares._waiting


def check_quota(policy: Scheduler) -> None:
    """What lanes lent is what running requests borrowed; never above the limits they were lent under."""
    book = policy._book
    charges = [t.charge for t in policy._backlog.running.values() if t.charge]
    lanes = range(len(book.limits))
    used = [book.used(lane) for lane in lanes]
    assert sum(q.tokens for q in used) == sum(n for charge in charges for _, n in charge.parts)
    assert sum(q.seats for q in used) == len(charges)
    if all(charge.epoch == book._epoch for charge in charges):
        for lane in lanes:
            assert 0 <= used[lane].tokens <= book.limits[lane].tokens
            assert 0 <= used[lane].seats <= book.limits[lane].seats


def check_adapters(policy: Scheduler) -> None:
    """Counts, bytes and slot of every entry are those of the requests and of one another."""
    residency, states = policy._residency, policy._backlog.states.values()
    queued = Counter(t.request.adapter_id for t in states if t.stage is not Stage.RUNNING)
    running = Counter(t.request.adapter_id for t in states if t.stage is Stage.RUNNING)
    for adapter_id, entry in residency.entries.items():
        assert queued[adapter_id] == entry.queued
        oldest = min((t.sequence for t in policy._backlog.waiting_for(adapter_id)), default=NEVER)
        assert oldest == entry.oldest
        assert running[adapter_id] == entry.running
        assert (entry.slot is not None) is (entry.tier is Tier.SLOT)
        assert not entry.running or entry.tier is Tier.SLOT
        needed, unneeded = residency._needed._place, residency._unneeded._place
        is_free = entry.is_evictable and not entry.queued
        assert (adapter_id in residency._expected._place) is (is_free and entry.is_expected)
        assert (adapter_id in needed) is (entry.is_evictable and entry.queued > 0)
        assert (adapter_id in unneeded) is (is_free and not entry.is_expected)
    check_slots(residency)
    held = [e.adapter.nbytes for e in residency.entries.values() if e.tier is not Tier.DISK]
    assert sum(held) == residency.host_bytes


def check_slots(residency: Residency) -> None:
    """Each adapter has just its slot; where there are none, those that run and no others have one."""
    in_slots = [entry for entry in residency.entries.values() if entry.slot is not None]
    assert sum(entry.running > 0 for entry in in_slots) == residency.slots.busy
    if isinstance(residency.slots, PagedSlots):
        assert all(entry.running for entry in in_slots)
        return
    found = {slot: e for slot, e in enumerate(residency.slots._occupants) if e is not None}
    assert found == {entry.slot: entry for entry in in_slots}


def check_prefetch(policy: Scheduler) -> None:
    """Only what is on disk and wanted is to be loaded; only a forecast makes an adapter expected."""
    prefetcher, entries = policy._prefetcher, policy._residency.entries
    for adapter_id, sequence in prefetcher._missing.items():
        assert entries[adapter_id].tier is Tier.DISK
        assert entries[adapter_id].queued or sequence == NEVER
    for adapter_id, entry in entries.items():
        if entry.is_pinned and entry.tier is Tier.DISK and not entry.is_leaving:
            assert adapter_id in prefetcher._missing.keys() | prefetcher._retry_s.keys()
    expected = {adapter_id for adapter_id, entry in entries.items() if entry.is_expected}
    habits = prefetcher._forecast._habits if prefetcher._forecast else {}
    assert expected == {adapter_id for adapter_id, habit in habits.items() if habit.is_expected}
    assert not any(entries[adapter_id].is_leaving for adapter_id in habits)


def check_engine_agrees(engine: EngineModel) -> None:
    """Host memory, loads and slots are at the engine as the policy believes, but for drops to come."""
    residency = engine.policy._residency
    to_drop = set(engine.policy._drops)
    in_host = {adapter_id for adapter_id, e in residency.entries.items() if e.is_in_host}
    loading = {adapter_id for adapter_id, e in residency.entries.items() if e.tier is Tier.LOADING}
    assert in_host | to_drop == engine.host
    assert loading == {adapter_id for _, adapter_id in engine.loading}
    assert loading == engine.policy._prefetcher._began_s.keys()
    occupants = [] if isinstance(residency.slots, PagedSlots) else residency.slots._occupants
    for believed, true in zip(occupants, engine.slots, strict=True):
        believed_id = believed.adapter.id if believed else None
        assert believed_id == true or (believed is None and true in to_drop)
    budget = engine.settings.cache.host_bytes
    if budget and not engine.true_bytes:
        assert residency.host_bytes <= budget


def check_device(engine: EngineModel) -> None:
    """KV blocks are free, a request's or an adapter's; policy and engine agree whose they are."""
    policy, device = engine.policy, engine.policy._device
    entries = policy._residency.entries
    holders = {adapter_id: entry.blocks for adapter_id, entry in entries.items() if entry.blocks}
    assert sum(holders.values()) == device.held_blocks
    assert device.held_blocks - device.busy_blocks <= device.limit_blocks or policy.limits.is_paged
    assert engine.busy_blocks == device.busy_blocks
    assert not policy.limits.is_paged or engine.in_use <= set(engine.places)
    assert not (policy.limits.is_paged and device.block_bytes) or engine.in_use <= holders.keys()
    to_free = {adapter_id: engine.lent[adapter_id] for adapter_id in device._released}
    assert holders | to_free == engine.lent
    assert len(holders) + len(to_free) == len(engine.lent) == len(holders.keys() | to_free.keys())
    assert engine.free_blocks >= 0
    assert not policy.limits.is_paged or engine.lacking_blocks <= 0 or len(engine.running) == 1
    under_way = {e.promotion: e for e in entries.values() if e.promotion is not None}
    assert under_way == device._under_way
    assert len(under_way) <= policy.settings.device.max_promoting
    assert under_way.keys() <= {promotion.serial for _, promotion in engine.promoting}
    for adapter_id in holders:
        assert entries[adapter_id].is_in_host
    check_groups(policy)


def check_groups(policy: Scheduler) -> None:
    """Each adapter stands in the one group it belongs to, if the tier is on."""
    groups = policy._device._groups
    if not (policy._device.limit_blocks or policy.limits.is_paged):
        assert not groups.holders()
        return
    for adapter_id, entry in policy._residency.entries.items():
        fits = entry.is_packed and policy._device.can_hold(entry.adapter.nbytes)
        group = _group_of(entry, may_hold=fits)
        assert groups._group_of.get(adapter_id) is group
        found = [g for g, members in zip(Group, groups._members, strict=True) if entry in members]
        assert found == [group] * (group is not None)
    assert groups._group_of.keys() <= policy._residency.entries.keys()


def check_rate(engine: EngineModel) -> None:
    """In any window of T seconds at most T * promotions_per_s + 1 promotions begin."""
    rate, begun_s = engine.settings.device.promotions_per_s, engine.begun_s
    for first, start_s in enumerate(begun_s):
        for count, end_s in enumerate(begun_s[first:], 1):
            assert count <= (end_s - start_s) * rate + 1 + 1e-6


def check_idle(engine: EngineModel) -> None:
    """Nothing is left: every request ended and gave back what it had borrowed."""
    policy = engine.policy
    check(engine)
    assert not policy._backlog.states
    assert all(done.end_s is not None or done.failure for done in engine.done.values())
    for lane in range(len(policy._book.limits)):
        assert (0, 0) == (policy._book.used(lane).tokens, policy._book.used(lane).seats)
    left: set[AdapterId] = {i for i, e in policy._residency.entries.items() if e.is_leaving}
    assert not left
