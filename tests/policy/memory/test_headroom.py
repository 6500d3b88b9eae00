"""Blocks that adapters leave idle: a fixed part, and what requests missed for their sake."""

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.memory.headroom import DeviceSettings, Headroom
from chameleon_lora.policy.plan import DemotionReason
from tests.policy.memory.test_device import EAGER, LRU, make, promote


def test_without_misses_it_is_the_fixed_part() -> None:
    """10 blocks stay idle, at whatever time."""
    headroom = Headroom(10, 100, 60.0)
    assert [10, 10] == [headroom.blocks(now_s) for now_s in (0.0, 1e6)]
    assert not headroom.is_raised(0.0)


def test_missed_blocks_are_left_idle_and_forgotten_by_half() -> None:
    """40 missed at 0 s are 40 more, 20 after a half-life, none in the end."""
    headroom = Headroom(10, 100, 60.0)
    headroom.missed(40, 0.0)
    assert [50, 30, 20, 10] == [headroom.blocks(now_s) for now_s in (0.0, 60.0, 120.0, 600.0)]
    assert [True, False] == [headroom.is_raised(now_s) for now_s in (0.0, 600.0)]


def test_misses_add_up_to_the_whole_cache_at_most() -> None:
    """40 missed, 20 of them left when 60 more are: 90; further ones end at all blocks."""
    headroom = Headroom(10, 100, 60.0)
    headroom.missed(40, 0.0)
    headroom.missed(60, 60.0)
    assert 90 == headroom.blocks(60.0)
    headroom.missed(60, 60.0)
    assert 100 == headroom.blocks(60.0)


def test_a_half_life_of_0_turns_misses_off() -> None:
    """The fixed part stays all there is."""
    headroom = Headroom(10, 100, 0.0)
    headroom.missed(40, 0.0)
    assert 10 == headroom.blocks(0.0)


def test_adapters_worth_least_yield_to_prefixes_that_were_missed() -> None:
    """Of 10 + 10 + 10 idle blocks held in a cache of 100 with 70 free, 80 wanted idle: one goes.

    While the headroom is short no other adapter comes in.
    """
    residency, (a, b, c) = make(10, 10, 10, settings=EAGER, cache=LRU)
    promote(residency)
    residency.device.headroom.missed(80, 9.0)
    assert () == residency.device.plan(9.0, 70, 0)
    assert (a.adapter.id,) == residency.device.take_released()
    assert ([0, 10, 10], {DemotionReason.PREFIX: 1}) == (
        [entry.blocks for entry in (a, b, c)],
        dict(residency.device.demotions),
    )
    assert () == residency.device.plan(9.0, 75, 0)


def test_adapters_come_back_when_prefixes_do_not() -> None:
    """Ten half-lives later the adapter that yielded is promoted again."""
    residency, (a, *_) = make(10, 10, 10, settings=EAGER, cache=LRU)
    promote(residency)
    residency.device.headroom.missed(80, 9.0)
    residency.device.plan(9.0, 70, 0)
    (found,) = residency.device.plan(609.0, 80, 0)
    assert a.adapter.id == found.adapter_id


def test_it_is_raised_while_one_block_is_left() -> None:
    """A block that was missed counts for one half-life of it, and two for two."""
    headroom = Headroom(10, 100, 60.0)
    headroom.missed(2, 0.0)
    assert [True, True, False] == [headroom.is_raised(now_s) for now_s in (59.0, 60.0, 61.0)]


def test_a_promotion_in_ten_seconds_is_a_rate() -> None:
    """Any rate above 0 is one."""
    assert 0.1 == DeviceSettings(promotions_per_s=0.1).promotions_per_s


def test_a_half_life_below_0_is_refused() -> None:
    """With its key, its value and what would do."""
    with pytest.raises(ConfigError, match=r"device\.prefix_half_life_s is -1\.0; use 0"):
        DeviceSettings(prefix_half_life_s=-1.0)
