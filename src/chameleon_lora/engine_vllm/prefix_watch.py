"""Prefixes that requests would have found cached, had adapters not taken their blocks."""

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import Any


class PrefixWatch:
    """Remembers which cached blocks were lent to adapters. Owner: the lending of one block pool.

    Invariant: it remembers no more blocks than the pool has, the latest.
    """

    def __init__(self, pool: Any) -> None:
        self._lost: dict[Any, None] = {}  # by block hash, oldest first
        self._limit = pool.num_gpu_blocks
        self._is_lending = False
        evict = pool._maybe_evict_cached_block

        def evict_and_remember(block: Any) -> Any:
            if self._is_lending and block.block_hash is not None:
                self._remember(block.block_hash)
            return evict(block)

        pool._maybe_evict_cached_block = evict_and_remember

    @contextmanager
    def lending(self) -> Iterator[None]:
        """Blocks that the pool hands out meanwhile go to an adapter."""
        self._is_lending = True
        try:
            yield
        finally:
            self._is_lending = False

    def missed(self, block_hashes: Iterable[Any]) -> int:
        """How many of a request's blocks were lost to adapters; each is told once."""
        from vllm.v1.core.kv_cache_utils import make_block_hash_with_group_id

        if not self._lost:
            return 0
        keys = [make_block_hash_with_group_id(block_hash, 0) for block_hash in block_hashes]
        found = [key for key in keys if key in self._lost]
        for key in found:
            del self._lost[key]
        return len(found)

    def _remember(self, block_hash: Any) -> None:
        self._lost[block_hash] = None
        if len(self._lost) > self._limit:
            del self._lost[next(iter(self._lost))]
