"""What is loaded next, and what waits for room."""

from dataclasses import replace

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.memory.entry import NEVER, Entry, Tier
from chameleon_lora.policy.memory.eviction import KeepRule
from chameleon_lora.policy.memory.forecast import ForecastSettings
from chameleon_lora.policy.memory.prefetch import MOST_LOADING, Prefetcher, PrefetchSettings
from chameleon_lora.policy.memory.residency import CacheSettings, Residency
from chameleon_lora.policy.memory.slots import SlotTable
from chameleon_lora.policy.plan import KvBlocks
from chameleon_lora.policy.request import AdapterId
from chameleon_lora.policy.settings import HOST_ONLY, EngineLimits, PolicySettings
from tests.policy.engine_model import EngineModel, adapter, request
from tests.policy.invariants import check, check_idle


def make(
    *sizes: int, budget: int | None = None, queued: bool = True, max_loading: int = 2
) -> tuple[Prefetcher, Residency, list[Entry]]:
    """A prefetcher over adapters of these sizes, all on disk."""
    cache = CacheSettings(keep=KeepRule.LRU, host_bytes=budget)
    residency = Residency(cache, SlotTable(2), 0, HOST_ONLY, KvBlocks(0, 0))
    entries = [residency.register(adapter(n, size)) for n, size in enumerate(sizes)]
    return Prefetcher(PrefetchSettings(queued, max_loading), residency), residency, entries


def planned(prefetcher: Prefetcher) -> list[int]:
    """The adapters whose loads begin now."""
    return [load.adapter_id for load in prefetcher.plan(0.0)]


def want(prefetcher: Prefetcher, residency: Residency, entry: Entry, sequence: int) -> None:
    """A request waits for the adapter."""
    residency.queue(entry, 1)
    entry.oldest = min(entry.oldest, sequence)
    prefetcher.want(entry, sequence)


def test_oldest_first() -> None:
    """Loads begin in the order in which the first request for each came."""
    prefetcher, residency, entries = make(10, 10, 10, max_loading=3)
    for number, sequence in ((0, 7), (1, 3), (2, 5), (0, 2), (1, 9)):
        want(prefetcher, residency, entries[number], sequence)
    assert [0, 1, 2] == planned(prefetcher)


def test_no_more_than_max_loading_at_a_time() -> None:
    """The third load begins when one of the first two has ended."""
    prefetcher, residency, entries = make(10, 10, 10)
    for sequence, entry in enumerate(entries):
        want(prefetcher, residency, entry, sequence)
    assert [0, 1] == planned(prefetcher)
    assert [] == planned(prefetcher)
    prefetcher.ended(entries[0])
    assert [2] == planned(prefetcher)


def test_those_no_longer_wanted_are_forgotten() -> None:
    """Though the first one, for which there is no room, keeps the heap from being looked through."""
    prefetcher, residency, entries = make(10, *([1] * 50), budget=5)
    want(prefetcher, residency, entries[0], 0)
    assert [] == planned(prefetcher)
    for sequence in range(1, 1000):
        entry = entries[1 + sequence % 50]
        prefetcher.want(entry, sequence)
        prefetcher.unwant(entry)
    assert len(prefetcher._oldest_first) <= 2 * len(entries)


def test_a_load_that_takes_too_long_leaves_its_place_to_another() -> None:
    """Two whose disk hangs hold up a third for `stall_s`, and never the loads after that."""
    prefetcher, residency, entries = make(10, 10, 10, 10)
    for sequence, entry in enumerate(entries):
        want(prefetcher, residency, entry, sequence)
    stall_s = PrefetchSettings().stall_s
    assert [0, 1] == planned(prefetcher)
    assert [] == prefetcher.plan(stall_s)
    assert [2, 3] == [load.adapter_id for load in prefetcher.plan(1.01 * stall_s)]


def test_loads_that_hang_are_not_heaped_up() -> None:
    """At most MOST_LOADING are under way, however long they take."""
    prefetcher, residency, entries = make(*[10] * (MOST_LOADING + 3))
    for sequence, entry in enumerate(entries):
        want(prefetcher, residency, entry, sequence)
    begun = [len(prefetcher.plan(3.0 * round_)) for round_ in range(MOST_LOADING)]
    assert MOST_LOADING == sum(begun)
    prefetcher.ended(entries[0])
    assert [MOST_LOADING] == [load.adapter_id for load in prefetcher.plan(1e6)]


def test_not_queued_loads_one_at_a_time() -> None:
    """Without prefetch only the adapter of the oldest waiting request is under way."""
    prefetcher, residency, entries = make(10, 10, queued=False, max_loading=9)
    for sequence, entry in enumerate(entries):
        want(prefetcher, residency, entry, sequence)
    assert [0] == planned(prefetcher)
    assert [] == planned(prefetcher)
    prefetcher.ended(entries[0])
    assert [1] == planned(prefetcher)


def test_adapter_nobody_waits_for_any_more_is_left_out() -> None:
    """After its last request went away an adapter is not loaded."""
    prefetcher, residency, entries = make(10, 10)
    want(prefetcher, residency, entries[0], 1)
    want(prefetcher, residency, entries[1], 2)
    prefetcher.unwant(entries[0])
    assert [1] == planned(prefetcher)


def test_only_adapters_on_disk_are_wanted() -> None:
    """One that is being loaded or loaded already is not loaded again."""
    prefetcher, residency, entries = make(10)
    want(prefetcher, residency, entries[0], 1)
    assert [0] == planned(prefetcher)
    want(prefetcher, residency, entries[0], 2)
    assert [] == planned(prefetcher)


def test_smaller_one_does_not_take_the_room_the_oldest_waits_for() -> None:
    """A load that lacks room blocks those behind it, and is told as blocked."""
    prefetcher, residency, entries = make(60, 60, 10, budget=100)
    want(prefetcher, residency, entries[0], 1)
    assert [0] == planned(prefetcher)
    want(prefetcher, residency, entries[1], 2)
    want(prefetcher, residency, entries[2], 3)
    assert [] == planned(prefetcher)
    assert entries[1] is prefetcher.blocked


def test_blocked_is_forgotten_when_there_is_room() -> None:
    """As soon as the load begins nothing is blocked."""
    prefetcher, residency, entries = make(60, 60, budget=100)
    want(prefetcher, residency, entries[0], 1)
    assert [0] == planned(prefetcher)
    want(prefetcher, residency, entries[1], 2)
    assert [] == planned(prefetcher)
    prefetcher.ended(entries[0])
    residency.loaded(entries[0], 60, 8)
    residency.queue(entries[0], -1)
    assert [1] == planned(prefetcher)
    assert prefetcher.blocked is None


def test_adapters_of_older_requests_are_not_evicted() -> None:
    """A load evicts what later requests wait for, never what earlier ones do."""
    prefetcher, residency, entries = make(60, 60, budget=100)
    want(prefetcher, residency, entries[0], 5)
    prefetcher.plan(0.0)
    residency.loaded(entries[0], 60, 8)
    want(prefetcher, residency, entries[1], 6)
    assert [] == prefetcher.plan(0.0)
    entries[0].oldest = 7
    (load,) = prefetcher.plan(0.0)
    assert (entries[0].adapter.id,) == load.evicts


def test_max_loading_below_one_is_refused() -> None:
    """Without any load no request of an adapter would ever run."""
    with pytest.raises(ConfigError, match=r"prefetch\.max_loading is 0; use 1 or more"):
        PrefetchSettings(max_loading=0)
    with pytest.raises(ConfigError, match=r"prefetch\.stall_s is 0\.0; use more than 0 seconds"):
        PrefetchSettings(stall_s=0.0)


FORESIGHT = PrefetchSettings(
    predicted=True, stall_s=1e9, forecast=ForecastSettings(least_gaps=2, least_variation=0.0)
)
PERIOD_S = 8.0
SOON_S = 0.95 * PERIOD_S  # after a request, when the next one is expected
LATE_S = 2.0 * PERIOD_S


def foresee(
    *sizes: int, budget: int | None = None, settings: PrefetchSettings = FORESIGHT
) -> tuple[Prefetcher, Residency, list[Entry]]:
    """As `make`; and requests of all adapters came each 8 s, the last ones at 0 s."""
    _, residency, entries = make(*sizes, budget=budget)
    prefetcher = Prefetcher(settings, residency)
    for turn in range(-4, 1):
        for entry in entries:
            prefetcher.arrived(entry, turn * PERIOD_S)
    return prefetcher, residency, entries


def load(residency: Residency, *entries: Entry) -> None:
    """These adapters are in host memory."""
    for entry in entries:
        assert () == residency.try_load(entry, 0, 0.0)
        residency.loaded(entry, entry.adapter.nbytes, 8)


class TestPredicted:
    def test_an_adapter_is_loaded_before_its_request_comes(self) -> None:
        """Its load begins when its window does, and not before."""
        prefetcher, _, (entry,) = foresee(10)
        assert [] == prefetcher.plan(0.5 * PERIOD_S)
        (planned_load,) = prefetcher.plan(SOON_S)
        assert (entry.adapter.id, True) == (planned_load.adapter_id, entry.is_expected)

    def test_off_nothing_is_kept_or_expected(self) -> None:
        """Without the setting there is no histogram, and no load."""
        prefetcher, _, (entry,) = foresee(10, settings=PrefetchSettings())
        assert prefetcher._forecast is None
        assert ([], False) == (prefetcher.plan(SOON_S), entry.is_expected)

    def test_its_request_ends_the_expectation(self) -> None:
        """From then on the adapter is wanted because it is named."""
        prefetcher, _, (entry,) = foresee(10)
        prefetcher.plan(SOON_S)
        prefetcher.arrived(entry, PERIOD_S)
        assert not entry.is_expected

    def test_a_load_not_begun_is_unwanted_when_the_window_ends(self) -> None:
        """While other loads took the disk the time went by."""
        prefetcher, residency, (one, two) = foresee(10, 10)
        assert [0] == [planned_load.adapter_id for planned_load in prefetcher.plan(SOON_S)]
        assert two.is_expected
        assert [] == prefetcher.plan(LATE_S)
        prefetcher.ended(residency.entries[AdapterId(0)])
        assert [] == prefetcher.plan(LATE_S)
        assert (False, False) == (one.is_expected, two.is_expected)
        assert [] == prefetcher._oldest_first
        assert Tier.DISK is residency.entries[two.adapter.id].tier

    def test_one_pinned_is_loaded_though_expected_no_longer(self) -> None:
        """A window that ends takes back what it asked for, not what the pin did; unpinning does."""
        prefetcher, residency, (one, two) = foresee(10, 10)
        prefetcher._began_s.update({AdapterId(98): 0.0, AdapterId(99): 0.0})
        for entry in (one, two):
            residency.pin(entry, is_pinned=True)
            prefetcher.want(entry, NEVER)
        prefetcher.plan(SOON_S)
        prefetcher.plan(LATE_S)
        residency.pin(one, is_pinned=False)
        prefetcher._began_s.clear()
        assert [1] == [planned_load.adapter_id for planned_load in prefetcher.plan(LATE_S)]

    def test_a_waiting_request_wants_it_beyond_the_window(self) -> None:
        """A request that was there before the window began still gets its adapter after it."""
        prefetcher, residency, (one, two) = foresee(10, 10)
        want(prefetcher, residency, two, 3)
        prefetcher._began_s.update({AdapterId(98): 0.0, AdapterId(99): 0.0})
        assert [] == prefetcher.plan(SOON_S)
        assert one.is_expected
        assert [] == prefetcher.plan(LATE_S)
        prefetcher._began_s.clear()
        assert [1] == [planned_load.adapter_id for planned_load in prefetcher.plan(LATE_S)]

    def test_requests_that_wait_go_first(self) -> None:
        """Their adapters are loaded before those that are expected."""
        prefetcher, residency, (_, _, named) = foresee(10, 10, 10)
        want(prefetcher, residency, named, 99)
        assert [2, 0] == [
            planned_load.adapter_id
            for planned_load in Prefetcher.plan(widened(prefetcher, 3), SOON_S)
        ]

    def test_one_load_at_a_time_is_left_to_requests(self) -> None:
        """Of two only one is for an adapter nobody asked for, so that who asks finds the disk free."""
        prefetcher, residency, (*_, named) = foresee(10, 10, 10)
        assert [0] == [planned_load.adapter_id for planned_load in prefetcher.plan(SOON_S)]
        want(prefetcher, residency, named, 99)
        assert [2] == [planned_load.adapter_id for planned_load in prefetcher.plan(SOON_S)]

    def test_the_only_load_there_may_be_is_not_kept_free(self) -> None:
        """With one load at a time an expected adapter is loaded if nothing else is."""
        prefetcher, _, _ = foresee(10, settings=replace(FORESIGHT, max_loading=1))
        assert [0] == [planned_load.adapter_id for planned_load in prefetcher.plan(SOON_S)]

    def test_without_room_it_is_given_up_and_blocks_nobody(self) -> None:
        """Two adapters in use fill host memory: of those expected the small one still fits."""
        prefetcher, residency, (used, _, small) = foresee(60, 60, 30, budget=100)
        load(residency, used)
        residency.pin(used, is_pinned=True)
        assert [2] == [planned_load.adapter_id for planned_load in prefetcher.plan(SOON_S)]
        assert (None, small) == (prefetcher.blocked, residency.entries[small.adapter.id])
        residency.pin(used, is_pinned=False)
        prefetcher.ended(residency.entries[AdapterId(0)])
        assert [] == prefetcher.plan(SOON_S)

    def test_a_withdrawn_adapter_is_not_expected(self) -> None:
        """Nor is it after a last request that was on its way."""
        prefetcher, _, (one, two) = foresee(10, 10)
        prefetcher.plan(SOON_S)
        for entry in (one, two):
            entry.is_leaving = True
            prefetcher.withdrawn(entry)
        prefetcher.arrived(one, PERIOD_S)
        assert not one.is_expected
        assert not two.is_expected
        assert prefetcher._forecast is not None
        assert {} == prefetcher._forecast._habits

    def test_the_base_model_is_no_adapter(self) -> None:
        """Its requests leave no trace."""
        prefetcher, _, _ = foresee()
        prefetcher.arrived(None, 0.0)
        assert [] == prefetcher.plan(SOON_S)


class TestEvictionOrder:
    def make(self) -> tuple[Residency, list[Entry], list[Entry]]:
        """Three adapters on disk; in host memory one queued for, one expected, one neither."""
        _, residency, entries = make(10, 10, 10, 10, 10, 10, budget=30)
        queued, expected, idle = entries[3:]
        load(residency, queued, expected, idle)
        residency.queue(queued, 1)
        queued.oldest = 5
        residency.expect(expected, is_expected=True)
        return residency, entries[:3], entries[3:]

    def test_expected_ones_go_after_the_idle_and_before_the_queued(self) -> None:
        """Loads for older requests take them in this order, whoever was used last."""
        residency, wanted, (queued, expected, idle) = self.make()
        idle.last_use_s, expected.last_use_s = 9.0, 5.0
        evicted = [residency.try_load(entry, 1, 10.0) for entry in wanted]
        assert [(entry.adapter.id,) for entry in (idle, expected, queued)] == evicted

    def test_expected_ones_do_not_evict_each_other(self) -> None:
        """A load that nobody asked for takes idle ones only."""
        residency, (first, second, _), (queued, expected, idle) = self.make()
        assert (idle.adapter.id,) == residency.try_load(first, NEVER, 0.0)
        assert residency.try_load(second, NEVER, 0.0) is None
        assert queued.is_in_host
        assert expected.is_in_host

    def test_one_expected_no_longer_is_idle_again(self) -> None:
        """It goes when it is the least recently used."""
        residency, (wanted, *_), (_, expected, idle) = self.make()
        idle.last_use_s = 9.0
        residency.expect(expected, is_expected=False)
        assert (expected.adapter.id,) == residency.try_load(wanted, NEVER, 10.0)

    def test_a_load_larger_than_foretold_evicts_expected_ones_too(self) -> None:
        """The budget holds, though nobody is idle; who is queued for stays."""
        residency, (wanted, *_), (queued, expected, _) = self.make()
        residency.try_load(wanted, NEVER, 0.0)
        residency.loaded(wanted, 15, 8)
        residency.queue(wanted, 1)
        assert (expected.adapter.id,) == residency.overflow(0.0)
        assert queued.is_in_host
        assert residency.host_bytes <= 30


class TestEffect:
    """An adapter used each 10 s, in a host memory that others pass through in between."""

    LIMITS = EngineLimits(
        seats=4, slots=1, kv_tokens=1600, kv_bytes_per_token=1000, block_bytes=100
    )
    TURNS = 16

    def arrivals(self, *, predicted: bool) -> list[tuple[bool, bool]]:
        """Whether the adapter was in host memory and in KV blocks, whole, at each of its requests."""
        settings = PolicySettings(
            cache=CacheSettings(keep=KeepRule.LRU, host_bytes=2500),
            prefetch=PrefetchSettings(predicted=predicted),
        )
        engine = EngineModel(settings, self.LIMITS, step_s=0.2)
        engine.register(*(adapter(number, 1000) for number in range(1, 4 * self.TURNS)))
        entry, found = engine.policy._residency.entries[AdapterId(1)], []
        for turn in range(self.TURNS):
            while engine.now_s < 10.0 * turn:
                engine.step()
            check(engine)
            found.append((entry.is_in_host, entry.is_on_device))
            engine.arrive(request(f"r{turn}", 1), 3)
            for other in range(3):
                while engine.now_s < 10.0 * turn + 2.0 * (other + 1):
                    engine.step()
                engine.arrive(request(f"o{turn}-{other}", 2 + 3 * turn + other), 3)
        engine.run_until_idle()
        check_idle(engine)
        return found

    def test_it_is_there_when_its_request_comes(self) -> None:
        """Once ten gaps were seen, in host memory and in idle KV blocks; before, and off, never."""
        off, on = self.arrivals(predicted=False), self.arrivals(predicted=True)
        assert [(False, False)] * self.TURNS == off
        assert [(False, False)] * 11 + [(True, True)] * (self.TURNS - 11) == on


def widened(prefetcher: Prefetcher, max_loading: int) -> Prefetcher:
    """The same, with more loads at a time."""
    prefetcher._settings = replace(prefetcher._settings, max_loading=max_loading)
    return prefetcher
