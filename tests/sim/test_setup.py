"""What the policy is told of the engine that a setup describes."""

from dataclasses import replace

import pytest

from chameleon_lora.errors import ConfigError
from chameleon_lora.sim.setup import S_LORA, foretell_nothing, foretell_truth
from tests.sim.setups import ONE_SEAT, profile, requests, setup


def test_slots_take_their_memory_from_the_kv_cache() -> None:
    """Two slots of rank 8 at a block a rank leave 84 of 100 blocks."""
    limits = setup(profile(blocks=100), replace(ONE_SEAT, slots=2)).limits
    assert (84 * 16, 2, False) == (limits.kv_tokens, limits.slots, limits.is_paged)
    assert 84 == limits.kv_blocks.count


def test_paged_engines_have_all_of_it() -> None:
    """S-LoRA has no slots."""
    limits = setup(profile(blocks=100), S_LORA).limits
    assert (1600, True) == (limits.kv_tokens, limits.is_paged)
    assert profile().memory.block_tokens * profile().memory.kv_bytes_per_token == limits.block_bytes


def test_adapters_in_host_memory_take_no_kv_cache() -> None:
    """An engine of two slots without them: all blocks are the requests', and none holds adapters."""
    style = replace(ONE_SEAT, slots=2, pads_ranks=True).without_slots()
    limits = setup(profile(blocks=100), style).limits
    assert (1600, True, 0) == (limits.kv_tokens, limits.is_paged, limits.block_bytes)
    assert not style.pads_ranks


def test_a_profile_without_copies_is_of_one_kind_of_engine() -> None:
    """Slots and KV blocks are filled by copies, whose costs it does not know."""
    known = replace(profile(), in_host=True)
    assert setup(known, ONE_SEAT.without_slots()).limits.is_paged
    for style in (ONE_SEAT, S_LORA):
        with pytest.raises(ConfigError, match="calibrate --lora-backend slots"):
            setup(known, style).limits  # noqa: B018


def test_memory_for_all_adapters_on_top_is_a_bound() -> None:
    """Ranks 8 and 16 at a block each add 24 blocks."""
    bound = replace(setup(profile(blocks=100), S_LORA, ranks=(8, 16)), unlimited_adapters=True)
    assert 124 == bound.limits.kv_blocks.count


def test_slots_that_leave_no_memory_are_refused() -> None:
    """The message gives what they take, what there is, and the way out."""
    crowded = setup(profile(blocks=100), replace(ONE_SEAT, slots=13))
    with pytest.raises(
        ConfigError, match=r"13 slots of rank 8 take 1664000 bytes.*use fewer slots"
    ):
        crowded.limits  # noqa: B018


def test_what_is_foretold() -> None:
    """Nothing, or the true length."""
    (request,) = requests((0.0, None, 5, 7))
    assert (None, 7) == (foretell_nothing(request), foretell_truth(request))
