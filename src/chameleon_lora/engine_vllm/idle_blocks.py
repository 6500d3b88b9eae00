"""The KV blocks that adapters hold, while vLLM goes on as if they were free.

Two methods of vLLM's block pool are overlaid on this one instance: its count of free blocks takes in
what adapters hold, and before it hands out more than it has, adapters give blocks back. So vLLM
admits, grows and preempts exactly as it would without them.
"""

from collections.abc import Callable, Sequence
from typing import Any

from chameleon_lora.engine_vllm.prefix_watch import PrefixWatch
from chameleon_lora.errors import UnsupportedLayoutError
from chameleon_lora.policy.request import AdapterId


class IdleBlocks:
    """Lends blocks of vLLM's pool to adapters. Owner: the scheduler; lives as long as the pool.

    Invariant: a block is free, a request's or an adapter's; `held` counts the last.
    """

    def __init__(self, pool: Any) -> None:
        self._pool = pool
        self._take = pool.get_new_blocks
        self._count_free: Callable[[], int] = pool.get_num_free_blocks
        self._blocks: dict[AdapterId, list[Any]] = {}
        self.prefixes = PrefixWatch(pool)
        self.held = 0

    @property
    def free(self) -> int:
        """Blocks that nobody holds."""
        return self._count_free()

    def serve(self, reclaim: Callable[[int], None]) -> None:
        """From now on vLLM counts adapters' blocks as free.

        `reclaim` is called with the number of blocks that lack; it has them given back.
        """

        def get_num_free_blocks() -> int:
            return self._count_free() + self.held

        def get_new_blocks(count: int, *args: Any, **kwargs: Any) -> Any:
            lacking = count - self._count_free()
            if lacking > 0:
                reclaim(lacking)
            return self._take(count, *args, **kwargs)

        self._pool.get_num_free_blocks = get_num_free_blocks
        self._pool.get_new_blocks = get_new_blocks

    def lend(self, adapter_id: AdapterId, count: int) -> tuple[int, ...]:
        """The numbers of so many free blocks, which are the adapter's from now on.

        Ascending, for neighbours in the pool are neighbours in memory: fewer, longer copies.
        """
        assert adapter_id not in self._blocks, f"adapter {adapter_id} holds blocks already"
        assert count <= self.free, f"{count} blocks are to be lent, {self.free} are free"
        with self.prefixes.lending():
            blocks = self._blocks[adapter_id] = self._take(count)
        self.held += count
        return tuple(sorted(block.block_id for block in blocks))

    def give_back(self, adapter_id: AdapterId) -> None:
        """Afterwards the adapter holds no block."""
        blocks = self._blocks.pop(adapter_id, [])
        self.held -= len(blocks)
        self._pool.free_blocks(blocks)

    def check_balance(self) -> None:
        """For an engine without requests: nothing if every block is free or an adapter's.

        Raises:
            AssertionError: naming the counts; blocks leaked.
        """
        total = self._pool.num_gpu_blocks - 1  # without the null block
        assert self.free + self.held == total, (
            f"{self.free} KV blocks are free and adapters hold {self.held}, but there are {total}"
        )


def block_bytes_of(kv_cache_config: Any) -> int:
    """Bytes of one KV block on one rank, over all layers.

    Raises:
        UnsupportedLayoutError: a block of this cache is not plain bytes that belong to it alone.
    """
    for group in kv_cache_config.kv_cache_groups:
        for name, spec in _specs_of(group):
            if not _is_plain(spec):
                raise UnsupportedLayoutError(
                    f"layer {name} keeps its state as {type(spec).__name__}, which is not laid out "
                    "in blocks of plain bytes"
                )
    tensors: Sequence[Any] = kv_cache_config.kv_cache_tensors
    if any(getattr(tensor, "host_resident", False) for tensor in tensors):
        raise UnsupportedLayoutError("a part of the KV cache is in host memory")
    if not tensors or not kv_cache_config.num_blocks:
        raise UnsupportedLayoutError("this model has no KV cache")
    if hasattr(tensors[0], "layer_stride"):  # one allocation for all
        total = int(tensors[0].size)
    else:  # vLLM 0.26: one for each tensor
        total = sum(int(tensor.size) for tensor in tensors)
    return total // int(kv_cache_config.num_blocks)


def _specs_of(group: Any) -> list[tuple[str, Any]]:
    spec = group.kv_cache_spec
    inner = getattr(spec, "kv_cache_specs", None)
    return [(name, inner[name] if inner else spec) for name in group.layer_names]


def _is_plain(spec: Any) -> bool:
    from vllm.v1.kv_cache_interface import AttentionSpec

    return isinstance(spec, AttentionSpec) and bool(getattr(spec, "has_layer_views", True))
