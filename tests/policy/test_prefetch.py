"""What is loaded next, and what waits for room."""

import pytest
from tests.policy.engine_model import adapter

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.entry import Entry
from chameleon_lora.policy.eviction import KeepRule
from chameleon_lora.policy.prefetch import Prefetcher, PrefetchSettings
from chameleon_lora.policy.residency import CacheSettings, Residency
from chameleon_lora.policy.slots import SlotTable


def make(
    *sizes: int, budget: int = 0, queued: bool = True, max_loading: int = 2
) -> tuple[Prefetcher, Residency, list[Entry]]:
    """A prefetcher over adapters of these sizes, all on disk."""
    residency = Residency(
        CacheSettings(keep=KeepRule.LRU, host_bytes=budget), SlotTable(2, 1, 8), seed=0
    )
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
    prefetcher.ended()
    assert [2] == planned(prefetcher)


def test_not_queued_loads_one_at_a_time() -> None:
    """Without prefetch only the adapter of the oldest waiting request is under way."""
    prefetcher, residency, entries = make(10, 10, queued=False, max_loading=9)
    for sequence, entry in enumerate(entries):
        want(prefetcher, residency, entry, sequence)
    assert [0] == planned(prefetcher)
    assert [] == planned(prefetcher)
    prefetcher.ended()
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
    prefetcher.ended()
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
