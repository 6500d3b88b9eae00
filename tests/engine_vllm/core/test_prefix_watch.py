"""What requests lost in vLLM's prefix cache because adapters took its blocks, on vLLM's own pool."""

import pytest

from chameleon_lora.engine_vllm.core.block_loans import LoanedBlocks
from chameleon_lora.policy.request import AdapterId
from tests.engine_vllm.block_pools import cache, make_pool

pytestmark = pytest.mark.vllm


def test_a_cached_block_lent_to_an_adapter_is_missed_once() -> None:
    """Of three blocks that were cached, two went to an adapter: a request for all misses two."""
    pool = make_pool(3)
    cache(pool, "x", "y", "z")
    blocks = LoanedBlocks(pool)
    blocks.lend(AdapterId(1), 2)
    assert [2, 0] == [blocks.prefixes.missed([b"x", b"y", b"z"]) for _ in range(2)]


def test_a_cached_block_that_a_request_took_is_not_missed() -> None:
    """Requests push each other's prefixes out without adapters, too."""
    pool = make_pool(3)
    blocks = LoanedBlocks(pool)
    cache(pool, "x", "y", "z")
    pool.free_blocks(pool.get_new_blocks(3))
    assert 0 == blocks.prefixes.missed([b"x", b"y", b"z"])


def test_blocks_that_cached_nothing_are_not_missed() -> None:
    """Lending them costs no prefix."""
    blocks = LoanedBlocks(make_pool(3))
    blocks.lend(AdapterId(1), 3)
    assert 0 == blocks.prefixes.missed([b"x"])


def test_only_as_many_as_the_pool_has_are_remembered() -> None:
    """After several rounds the oldest lost prefixes are forgotten."""
    pool = make_pool(3)
    blocks = LoanedBlocks(pool)
    for round_ in range(3):
        cache(pool, *(f"{name}{round_}" for name in "xyz"))
        blocks.lend(AdapterId(round_), 3)
        blocks.give_back(AdapterId(round_))
    names = [f"{name}{round_}".encode() for round_ in range(3) for name in "xyz"]
    assert pool.num_gpu_blocks == blocks.prefixes.missed(names)
    assert 0 == blocks.prefixes.missed(names[:5])
