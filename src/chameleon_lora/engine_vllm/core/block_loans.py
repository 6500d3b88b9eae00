"""Which KV blocks change hands between requests and adapters, as the policy decides.

The policy counts blocks; here they have numbers. What workers are to do about it is told with the
same step that the blocks change hands in, and they do it before that step writes any block.
"""

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from chameleon_lora.engine_vllm.messages import Command, DemoteAdapter, PromoteAdapter
from chameleon_lora.errors import UnsupportedLayoutError
from chameleon_lora.policy.plan import StepPlan
from chameleon_lora.policy.request import AdapterId
from chameleon_lora.policy.scheduler import Scheduler


class PrefixWatch:
    """Remembers which cached blocks were lent to adapters. Owner: the loans of one block pool.

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


class LoanedBlocks:
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
        """Blocks that neither requests nor adapters hold; their content may still be cached."""
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
        """The adapter's blocks are vLLM's again; no effect if it holds none."""
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


class BlockLoans:
    """Carries out promotions and demotions on the block pool. Owner: the driver.

    Invariant: after `trade` the blocks that the policy counts for an adapter are those it holds.
    """

    def __init__(self, policy: Scheduler, blocks: LoanedBlocks) -> None:
        self.policy = policy
        self._blocks = blocks
        self._demoted: list[AdapterId] = []
        self._promotions: dict[AdapterId, PromoteAdapter] = {}
        self._now_s = 0.0
        blocks.serve(self._make_room)

    @property
    def free_blocks(self) -> int:
        """KV blocks that neither requests nor adapters hold."""
        return self._blocks.free

    def arrived(self, block_hashes: Sequence[Any], now_s: float) -> None:
        """A request came whose full prompt blocks have these hashes."""
        missed = self._blocks.prefixes.missed(block_hashes)
        if missed:
            self.policy.prefix_missed(missed, now_s)

    def trade(self, plan: StepPlan, now_s: float) -> None:
        """Blocks change hands as planned."""
        self._now_s = now_s
        self._give_back(*plan.demotions)
        for promotion in plan.promotions:
            self._give_back(*promotion.evicts)
            numbers = self._blocks.lend(promotion.adapter_id, promotion.blocks)
            self._promotions[promotion.adapter_id] = PromoteAdapter(
                promotion.adapter_id, promotion.serial, numbers
            )

    def empty(self) -> None:
        """Every adapter gives its blocks back at once."""
        self._give_back(*self.policy.cache_emptied())

    def take_commands(self) -> tuple[Command, ...]:
        """What the workers are to do about the trades since the last call, in this order."""
        demotions = [DemoteAdapter(adapter_id) for adapter_id in self._demoted]
        promotions = self._promotions.values()
        self._demoted, self._promotions = [], {}
        return (*demotions, *promotions)

    def check_balance(self) -> None:
        """For an engine without requests: nothing if no KV block is lost.

        Raises:
            AssertionError: naming the counts.
        """
        self._make_room(0)
        self._blocks.check_balance()
        held, counted = self._blocks.held, self.policy.held_blocks
        assert held == counted, f"adapters hold {held} KV blocks, the policy counts {counted}"

    def _make_room(self, lacking: int) -> None:
        """vLLM is about to take so many blocks more than are free."""
        untold = self._blocks.held - self.policy.held_blocks  # given back, but not told yet
        self._give_back(*self.policy.make_room(lacking - untold, self._now_s))

    def _give_back(self, *adapter_ids: AdapterId) -> None:
        """The blocks of these adapters are free; a copy that no worker was told of yet is not begun."""
        for adapter_id in adapter_ids:
            self._blocks.give_back(adapter_id)
            if self._promotions.pop(adapter_id, None) is None:
                self._demoted.append(adapter_id)


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
