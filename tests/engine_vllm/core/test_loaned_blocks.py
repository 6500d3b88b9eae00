"""Lending blocks of vLLM's own pool: counted as free, given back exactly when one lacks."""

from typing import Any

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from chameleon_lora.engine_vllm.core.block_loans import LoanedBlocks, block_bytes_of
from chameleon_lora.errors import UnsupportedLayoutError
from chameleon_lora.policy.request import AdapterId
from tests.engine_vllm.block_pools import cache, is_cached, make_pool

pytestmark = pytest.mark.vllm
A, B = AdapterId(1), AdapterId(2)


def lender(pool: Any) -> tuple[LoanedBlocks, list[int]]:
    """Blocks are lent; adapters give back one after the other, and what was asked is written down."""
    idle, asked = LoanedBlocks(pool), []

    def reclaim(lacking: int) -> None:
        asked.append(lacking)
        wanted = idle.free + lacking
        while idle.free < wanted and idle._blocks:
            idle.give_back(next(iter(idle._blocks)))

    idle.serve(reclaim)
    return idle, asked


class TestLending:
    def test_lent_blocks_count_as_free(self) -> None:
        """For vLLM nothing changed, its usage included; nobody can hold what an adapter holds."""
        pool = make_pool(20)
        idle, _ = lender(pool)
        numbers = idle.lend(A, 8)
        assert (20, 12, 8) == (pool.get_num_free_blocks(), idle.free, idle.held)
        assert 0.0 == pool.get_usage()
        taken = {block.block_id for block in pool.get_new_blocks(12)}
        assert (8, set(), 8) == (len(numbers), taken & set(numbers), pool.get_num_free_blocks())

    def test_blocks_are_given_back_when_one_lacks_and_not_before(self) -> None:
        """The twelve free ones are handed out first; then as many as lack are asked for."""
        pool = make_pool(20)
        idle, asked = lender(pool)
        idle.lend(A, 4)
        idle.lend(B, 4)
        pool.get_new_blocks(12)
        assert [] == asked
        pool.get_new_blocks(3)
        assert ([3], 4, 1) == (asked, idle.held, idle.free)
        pool.get_new_blocks(5)
        assert ([3, 4], 0, 0) == (asked, idle.held, pool.get_num_free_blocks())

    def test_more_than_there_are_is_refused_as_ever(self) -> None:
        """vLLM's own error, after which no block is lost."""
        pool = make_pool(20)
        idle, _ = lender(pool)
        idle.lend(A, 4)
        with pytest.raises(ValueError, match="Cannot get 21 free blocks"):
            pool.get_new_blocks(21)
        idle.check_balance()

    def test_blocks_that_cache_nothing_are_lent_first_then_the_oldest(self) -> None:
        """The prefix cache loses what it would lose to a request: the longest unused."""
        pool = make_pool(6)
        idle, _ = lender(pool)
        cache(pool, "a")
        cache(pool, "b")
        cache(pool, "c")
        idle.lend(A, 4)
        assert [False, True, True] == [is_cached(pool, name) for name in "abc"]
        idle.lend(B, 1)
        assert [False, False, True] == [is_cached(pool, name) for name in "abc"]

    def test_a_prefix_hit_takes_no_block_from_an_adapter(self) -> None:
        """What a request finds cached is not allocated, so nothing is given back for it."""
        pool = make_pool(6)
        idle, asked = lender(pool)
        cache(pool, "a", "b")
        idle.lend(A, 4)
        pool.touch(pool.get_cached_block(b"a", [0]))
        assert ([], 1, 5) == (asked, idle.free, pool.get_num_free_blocks())
        pool.get_new_blocks(2)
        assert [1] == asked

    def test_giving_back_leaves_the_prefix_cache_alone(self) -> None:
        """Blocks that an adapter gave back are used again before any cached one."""
        pool = make_pool(6)
        idle, _ = lender(pool)
        numbers = idle.lend(A, 4)
        cache(pool, "a", "b")
        idle.give_back(A)
        taken = {block.block_id for block in pool.get_new_blocks(4)}
        assert set(numbers) == taken
        assert [True, True] == [is_cached(pool, name) for name in "ab"]

    def test_giving_back_twice_changes_nothing(self) -> None:
        """An adapter without blocks has none to give."""
        pool = make_pool(6)
        idle, _ = lender(pool)
        idle.lend(A, 4)
        idle.give_back(A)
        idle.give_back(A)
        assert (6, 0) == (idle.free, idle.held)

    def test_lending_what_is_not_free_is_a_fault(self) -> None:
        """So is lending to a holder: the policy counted wrong."""
        pool = make_pool(6)
        idle, _ = lender(pool)
        idle.lend(A, 4)
        with pytest.raises(AssertionError, match="adapter 1 holds blocks already"):
            idle.lend(A, 1)
        with pytest.raises(AssertionError, match="3 blocks are to be lent, 2 are free"):
            idle.lend(B, 3)

    def test_a_lost_block_is_found(self) -> None:
        """Without requests all blocks are free or an adapter's; the message has the counts."""
        pool = make_pool(6)
        idle, _ = lender(pool)
        idle.lend(A, 2)
        idle.check_balance()
        pool.get_new_blocks(1)
        with pytest.raises(AssertionError, match="3 KV blocks are free and adapters hold 2, but"):
            idle.check_balance()

    def test_the_prefix_cache_is_reset_once_nobody_holds_a_block(self) -> None:
        """vLLM's check sees through: an adapter's blocks count as free, so it does not protect."""
        pool = make_pool(6)
        idle, _ = lender(pool)
        cache(pool, "a")
        idle.lend(A, 2)
        idle.give_back(A)
        assert pool.reset_prefix_cache()
        assert (False, 6) == (is_cached(pool, "a"), idle.free)


class PoolMachine(RuleBasedStateMachine):
    """Requests and adapters take and return blocks in any order; none is lost or held twice."""

    def __init__(self) -> None:
        super().__init__()
        self.pool = make_pool(20)
        self.idle, _ = lender(self.pool)
        self.requests: list[list[Any]] = []
        self.lent: dict[AdapterId, tuple[int, ...]] = {}
        self.count = 0

    @rule(count=st.integers(1, 12), hashed=st.booleans())
    def allocate(self, count: int, hashed: bool) -> None:
        if count <= self.pool.get_num_free_blocks():
            self.count += 1
            self.requests.append(self.pool.get_new_blocks(count))
            if hashed:
                self.fill(self.requests[-1])

    def fill(self, blocks: list[Any]) -> None:
        names = [f"{self.count}.{n}".encode() for n in range(len(blocks))]
        request = type("Request", (), {"block_hashes": names})
        self.pool.cache_full_blocks(request, blocks, 0, len(blocks), 16, 0)

    @precondition(lambda self: self.requests)
    @rule(pick=st.integers(0, 99))
    def free(self, pick: int) -> None:
        self.pool.free_blocks(self.requests.pop(pick % len(self.requests)))

    @precondition(lambda self: self.requests)
    @rule(pick=st.integers(0, 99))
    def hit(self, pick: int) -> None:
        blocks = self.requests[pick % len(self.requests)]
        self.pool.touch(blocks)
        self.requests.append(blocks)

    @rule(count=st.integers(1, 12))
    def lend(self, count: int) -> None:
        if count <= self.idle.free:
            self.count += 1
            adapter_id = AdapterId(self.count)
            self.lent[adapter_id] = self.idle.lend(adapter_id, count)

    @rule(pick=st.integers(0, 30))
    def give_back(self, pick: int) -> None:
        self.idle.give_back(AdapterId(pick))

    @rule()
    def reset(self) -> None:
        for adapter_id in list(self.lent):
            self.idle.give_back(adapter_id)
        assert self.pool.reset_prefix_cache() is not bool(self.requests)

    @invariant()
    def every_block_is_in_one_place(self) -> None:
        lent = {i: numbers for i, numbers in self.lent.items() if i in self.idle._blocks}
        self.lent = lent
        taken = {block.block_id for blocks in self.requests for block in blocks}
        adapters = [number for numbers in lent.values() for number in numbers]
        assert len(adapters) == len(set(adapters)) == self.idle.held
        assert not taken & set(adapters)
        assert 0 not in adapters
        assert 20 == self.idle.free + self.idle.held + len(taken)
        assert 20 - len(taken) == self.pool.get_num_free_blocks()
        free = {block.block_id for block in self.pool.free_block_queue.get_all_free_blocks()}
        assert not free & (taken | set(adapters))


TestPoolMachine = PoolMachine.TestCase


class TestBlockBytes:
    """What one block holds, on vLLM's own descriptions of KV caches."""

    def config(self, blocks: int = 10, **specs: Any) -> Any:
        """A cache in one allocation of layers with these specs, a group for each."""
        kv = pytest.importorskip("vllm.v1.kv_cache_interface")
        page = max((spec.page_size_bytes for spec in specs.values()), default=0)
        size = page * len(specs) * blocks
        tensor = kv.KVCacheTensor(size, list(specs), page * blocks, page)
        groups = [kv.KVCacheGroupSpec([name], spec) for name, spec in specs.items()]
        return kv.KVCacheConfig(blocks, [tensor] if specs else [], groups)

    def attention(self, name: str = "FullAttentionSpec", **fields: Any) -> Any:
        """Layers of 16 tokens, 2 heads, 8 wide, in float16: 1,024 bytes a block."""
        kv, torch = pytest.importorskip("vllm.v1.kv_cache_interface"), pytest.importorskip("torch")
        return getattr(kv, name)(
            block_size=16, num_kv_heads=2, head_size=8, dtype=torch.float16, **fields
        )

    def test_full_attention(self) -> None:
        """A block is one page of each layer."""
        assert 2048 == block_bytes_of(self.config(a=self.attention(), b=self.attention()))

    def test_layers_that_share_one_type(self) -> None:
        """Several specs in one group are each looked at."""
        kv = pytest.importorskip("vllm.v1.kv_cache_interface")
        inner = {"a": self.attention(), "b": self.attention()}
        group = kv.KVCacheGroupSpec(["a", "b"], kv.UniformTypeKVCacheSpecs(16, inner))
        config = self.config(**inner)
        config.kv_cache_groups = [group]
        assert 2048 == block_bytes_of(config)
        inner["b"] = self.mamba()
        with pytest.raises(UnsupportedLayoutError, match="layer b keeps its state as MambaSpec"):
            block_bytes_of(config)

    def test_sliding_windows(self) -> None:
        """Layers with a window lie in the same kind of blocks."""
        windowed = self.attention("SlidingWindowSpec", sliding_window=32)
        assert 2048 == block_bytes_of(self.config(a=self.attention(), b=windowed))

    def mamba(self) -> Any:
        """A layer that keeps a state of its own form."""
        kv, torch = pytest.importorskip("vllm.v1.kv_cache_interface"), pytest.importorskip("torch")
        return kv.MambaSpec(block_size=16, shapes=((4, 8),), dtypes=(torch.float32,))

    def test_mamba_is_refused(self) -> None:
        """The message names the layer and its kind."""
        with pytest.raises(UnsupportedLayoutError, match="layer m keeps its state as MambaSpec"):
            block_bytes_of(self.config(a=self.attention(), m=self.mamba()))

    def test_specs_without_layer_views_are_refused(self) -> None:
        """They lay the tensor out themselves."""
        kv = pytest.importorskip("vllm.v1.kv_cache_interface")
        if not hasattr(kv, "HiSparseHotSpec"):
            pytest.skip("this vLLM has no such layers")
        hot = kv.HiSparseHotSpec(block_size=16, page_size=64, blocks_per_request=2)
        with pytest.raises(UnsupportedLayoutError, match="layer h keeps its state as HiSparseHot"):
            block_bytes_of(self.config(h=hot))

    def test_host_resident_caches_are_refused(self) -> None:
        """A block there has bytes in two memories."""
        config = self.config(a=self.attention())
        config.kv_cache_tensors[0].host_resident = True
        with pytest.raises(UnsupportedLayoutError, match="in host memory"):
            block_bytes_of(config)

    @pytest.mark.parametrize("blocks", [0, 10])
    def test_no_cache_is_refused(self, blocks: int) -> None:
        """A pooling model has none."""
        specs = {} if blocks else {"a": self.attention()}
        with pytest.raises(UnsupportedLayoutError, match="this model has no KV cache"):
            block_bytes_of(self.config(blocks, **specs))
