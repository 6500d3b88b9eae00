"""vLLM's own block pool, with blocks in its prefix cache if wanted."""

from types import SimpleNamespace
from typing import Any

import pytest

BLOCK_TOKENS = 16


def make_pool(count: int = 20) -> Any:
    """A pool of so many blocks beside the null block. Skips without vLLM."""
    module = pytest.importorskip("vllm.v1.core.block_pool")
    return module.BlockPool(count + 1, enable_caching=True, hash_block_size=BLOCK_TOKENS)


def cache(pool: Any, *names: str) -> list[int]:
    """A request's blocks, one a name, are found under it and free again, in this order."""
    blocks = pool.get_new_blocks(len(names))
    request = SimpleNamespace(block_hashes=[name.encode() for name in names])
    pool.cache_full_blocks(request, blocks, 0, len(names), BLOCK_TOKENS, 0)
    pool.free_blocks(blocks)
    return [block.block_id for block in blocks]


def is_cached(pool: Any, name: str) -> bool:
    """True if the prefix cache still has the block."""
    return pool.get_cached_block(name.encode(), [0]) is not None
