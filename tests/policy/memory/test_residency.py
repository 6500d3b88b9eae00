"""Which adapter is where, and who goes to make room."""

import sys
from collections.abc import Sequence

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.memory.entry import NEVER, Entry, EntrySet, Tier
from chameleon_lora.policy.memory.eviction import KeepRule
from chameleon_lora.policy.memory.residency import SAMPLED, THOROUGH, CacheSettings, Residency
from chameleon_lora.policy.memory.slots import SlotTable
from chameleon_lora.policy.plan import Fault, KvBlocks
from chameleon_lora.policy.request import AdapterId
from chameleon_lora.policy.settings import HOST_ONLY
from tests.policy.engine_model import adapter

KIB = 1000


def make(
    count: int,
    budget: int | None = None,
    slots: int = 2,
    keep: KeepRule = KeepRule.LRU,
    size: int = KIB,
) -> tuple[Residency, list[Entry]]:
    """This many registered adapters, all on disk."""
    cache = CacheSettings(keep=keep, host_bytes=budget)
    residency = Residency(cache, SlotTable(slots), 0, HOST_ONLY, KvBlocks(0, 0))
    return residency, [residency.register(adapter(number, size)) for number in range(count)]


def bring(residency: Residency, entries: Sequence[Entry]) -> None:
    """These adapters are in host memory; each was used later than the one before."""
    for entry in entries:
        assert residency.try_load(entry, LAST, 0.0) == ()
        residency.loaded(entry, entry.adapter.nbytes, 8)
        entry.last_use_s = float(entry.adapter.id)


def use(residency: Residency, entry: Entry) -> int | None:
    """A request runs with the adapter; answers the slot copied to."""
    slot = give_slot(residency, entry) if entry.slot is None else None
    residency.queue(entry, 1)
    residency.start(entry, 100.0)
    return slot


def give_slot(residency: Residency, entry: Entry) -> int:
    """The adapter is in the slot that costs least; answers which."""
    slot = residency.try_find_slot((), 200.0)
    assert slot is not None
    residency.activate(entry, slot)
    return slot


FIRST, LAST = 0, NEVER - 1  # sequences: outranks all that wait, outranks nobody


class TestHostMemory:
    def test_load_takes_free_room_first(self) -> None:
        """Within the budget nobody is evicted."""
        residency, entries = make(3, budget=3 * KIB)
        bring(residency, entries)
        assert 3 * KIB == residency.host_bytes

    def test_no_budget_is_no_bound(self) -> None:
        """Without host_bytes everything stays."""
        residency, entries = make(100)
        bring(residency, entries)
        assert 100 * KIB == residency.host_bytes

    def test_unneeded_adapters_go_first(self) -> None:
        """The adapter nobody waits for goes, though it was used last."""
        residency, (a, b, c) = make(3, budget=2 * KIB)
        bring(residency, (a, b))
        residency.queue(a, 1)
        a.oldest = 1
        assert (b.adapter.id,) == residency.try_load(c, FIRST, 0.0)

    def test_needed_ones_go_if_outranked(self) -> None:
        """Of two adapters that are waited for, the one whose requests came later may go."""
        residency, (a, b, c) = make(3, budget=2 * KIB)
        bring(residency, (a, b))
        residency.queue(a, 1)
        residency.queue(b, 1)
        a.oldest, b.oldest = 3, 5
        assert residency.try_load(c, 5, 0.0) is None
        assert (b.adapter.id,) == residency.try_load(c, 4, 0.0)

    def test_failing_to_make_room_changes_nothing(self) -> None:
        """Without room for all of it nobody is evicted for a part."""
        residency, (a, b, c) = make(3, budget=2 * KIB)
        bring(residency, (a, b))
        residency.queue(a, 1)
        a.oldest = 1
        c.adapter = adapter(2, 2 * KIB)
        assert residency.try_load(c, LAST, 0.0) is None
        assert [Tier.HOST, Tier.HOST, Tier.DISK] == [e.tier for e in (a, b, c)]
        assert 2 * KIB == residency.host_bytes

    @pytest.mark.parametrize("why", ["in use", "pinned"])
    def test_adapters_in_use_or_pinned_stay(self, why: str) -> None:
        """Neither is evicted, whoever asks, until it is released."""
        residency, (a, b) = make(2, budget=KIB)
        bring(residency, (a,))
        if why == "in use":
            use(residency, a)
        else:
            residency.pin(a, is_pinned=True)
        assert residency.try_load(b, FIRST, 0.0) is None
        if why == "in use":
            residency.stop(a)
        else:
            residency.pin(a, is_pinned=False)
        assert (a.adapter.id,) == residency.try_load(b, LAST, 0.0)

    def test_eviction_from_a_slot_frees_the_slot(self) -> None:
        """An adapter that leaves host memory leaves its slot, for tiers are inclusive."""
        residency, (a, b) = make(2, budget=KIB, slots=1)
        bring(residency, (a,))
        use(residency, a)
        residency.stop(a)
        assert (a.adapter.id,) == residency.try_load(b, LAST, 0.0)
        assert residency.slots.at(0) is None

    def test_evicting_an_adapter_in_use_is_a_fault(self) -> None:
        """It would pull weights from under a running request."""
        residency, (a,) = make(1)
        bring(residency, (a,))
        use(residency, a)
        with pytest.raises(AssertionError, match="in use"):
            residency.evict(a)

    def test_larger_than_foretold_is_made_good(self) -> None:
        """After a load of 1,500 bytes instead of 1,000 the longest unused adapter goes."""
        residency, (a, b, c) = make(3, budget=3 * KIB)
        bring(residency, (a, b))
        residency.try_load(c, LAST, 0.0)
        residency.queue(c, 1)
        residency.loaded(c, KIB + 500, 8)
        assert (a.adapter.id,) == residency.overflow(0.0)
        assert () == residency.overflow(0.0)
        assert KIB + 500 == c.adapter.nbytes

    def test_too_large_is_what_the_whole_budget_cannot_hold(self) -> None:
        """An adapter above the budget never fits, and the reason names both; else all do."""
        residency, (a,) = make(1, budget=KIB)
        assert residency.why_too_large(a) is None
        a.adapter = adapter(0, KIB + 1)
        found = residency.why_too_large(a)
        assert found is not None
        reason, fault = found
        assert f"its {KIB + 1} bytes are above cache.host_bytes, {KIB}" in reason
        assert (repr(a.adapter.name) in reason, Fault.CONTENT) == (True, fault)
        assert make(1)[0].why_too_large(a) is None

    def test_one_larger_than_a_sample_gets_room_in_the_end(self) -> None:
        """Where 64 adapters are not enough to go, one try in 64 looks at all."""
        count = SAMPLED + 10
        residency, entries = make(count + 1, budget=count * KIB)
        bring(residency, entries[:count])
        large = entries[count]
        large.adapter = adapter(count, count * KIB)
        answers = [residency.try_load(large, LAST, 0.0) for _ in range(THOROUGH)]
        found = [evicts for evicts in answers if evicts is not None]
        assert [count] == [len(evicts) for evicts in found]

    def test_registering_an_id_twice_is_a_fault(self) -> None:
        """Ids are never used again."""
        residency, _ = make(1)
        with pytest.raises(AssertionError, match="twice"):
            residency.register(adapter(0))

    def test_gdsf_ages_those_that_stay(self) -> None:
        """An eviction raises the clock, so an adapter used after it is worth more than one before."""
        residency, (a, b, c, d) = make(4, budget=2 * KIB, keep=KeepRule.GDSF)
        bring(residency, (a, b))
        for entry in (a, b):
            use(residency, entry)
            residency.stop(entry)
        assert (a.adapter.id,) == residency.try_load(c, LAST, 0.0)
        residency.loaded(c, KIB, 8)
        use(residency, c)
        residency.stop(c)
        assert c.inflation > b.inflation
        assert (b.adapter.id,) == residency.try_load(d, LAST, 0.0)


class TestSlots:
    def test_free_slots_fill_in_order(self) -> None:
        """The first free slot is taken; an adapter in one is copied no second time."""
        residency, (a, b) = make(2)
        bring(residency, (a, b))
        assert [0, 1] == [use(residency, a), use(residency, b)]
        assert use(residency, a) is None
        assert 2 == residency.slots.busy

    def test_busy_slots_are_left_alone(self) -> None:
        """With all slots in use there is none for another adapter, until one is idle."""
        residency, (a, b) = make(2, slots=1)
        bring(residency, (a, b))
        use(residency, a)
        assert residency.try_find_slot((), 0.0) is None
        residency.stop(a)
        assert 0 == residency.try_find_slot((), 0.0)

    @pytest.mark.parametrize(
        ("queued", "pinned", "goes"), [((), (), 0), ((0,), (), 1), ((), (0,), 1), ((0, 1), (), 0)]
    )
    def test_whose_slot_goes(
        self, queued: tuple[int, ...], pinned: tuple[int, ...], goes: int
    ) -> None:
        """The longest unused one's; not of one that is waited for or pinned, if there is another."""
        residency, (a, b, c) = make(3)
        bring(residency, (a, b, c))
        for entry in (a, b):
            use(residency, entry)
            residency.stop(entry)
        for number in queued:
            residency.queue((a, b)[number], 1)
        for number in pinned:
            residency.pin((a, b)[number], is_pinned=True)
        assert goes == give_slot(residency, c)
        assert (a, b)[goes].tier is Tier.HOST
        assert (a, b)[goes].slot is None

    def test_slot_of_a_needed_one_goes_before_none(self) -> None:
        """If requests wait for every idle slot's adapter, one of them loses its slot all the same."""
        residency, (a, b) = make(2, slots=1)
        bring(residency, (a, b))
        use(residency, a)
        residency.stop(a)
        residency.queue(a, 1)
        residency.pin(a, is_pinned=True)
        assert 0 == give_slot(residency, b)


def test_uses_are_counted_inside_the_window() -> None:
    """Uses before the window's start are forgotten."""
    entry = Entry(adapter(1))
    entry.uses_s.extend((1.0, 2.0, 3.0))
    assert 2 == entry.uses_since(2.0)
    assert 0 == entry.uses_since(9.0)


@pytest.mark.parametrize(("name", "value"), [("host_bytes", 0), ("window_s", 0.0)])
def test_settings_out_of_range_are_refused(name: str, value: float) -> None:
    """The message names the setting, its value and what is allowed."""
    with pytest.raises(ConfigError, match=f"cache.{name} is {value}; use"):
        CacheSettings(**{name: value})  # type: ignore[arg-type]


def test_forgetting_an_adapter_removes_it() -> None:
    """A forgotten adapter is unknown."""
    residency, (a,) = make(1)
    residency.forget(a)
    assert AdapterId(0) not in residency.entries


def test_an_adapter_that_nobody_asks_for_takes_little_memory() -> None:
    """There may be tens of thousands; only those that are used remember when."""
    _, (unused,) = make(1)
    parts = [getattr(unused, name) for name in Entry.__slots__]
    own = [part for part in parts if not isinstance(part, int | float | str | None)]
    assert sum(map(sys.getsizeof, own)) < 200
    assert 0 == unused.uses_since(0.0)
    unused.used(1.0, 10.0)
    assert 1 == unused.uses_since(0.0)


def test_what_finds_no_room_at_the_start_stays_on_disk() -> None:
    """The budget has room for one of two."""
    residency, entries = make(2, KIB)
    for entry in entries:
        residency.pin(entry, is_pinned=True)
        residency.preload(entry, 0.0)
    assert [Tier.HOST, Tier.DISK] == [entry.tier for entry in entries]


def test_an_entry_is_in_a_set_once_or_not_at_all() -> None:
    """However often it is put in or taken out."""
    members, entry = EntrySet(), Entry(adapter(1))
    sizes = []
    for is_member in (False, True, True, False, False):
        members.put(entry, is_member)
        sizes.append(len(members))
    assert [0, 1, 1, 0, 0] == sizes
