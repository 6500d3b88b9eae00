"""DeviceStore: adapters in KV blocks, and no block written after it was given up."""

import random
import threading
from collections.abc import Callable, Iterator
from types import SimpleNamespace
from typing import Any, TypeVar

import pytest

from chameleon_lora.engine_vllm.messages import PromoteAdapter, Promoted, PromotionFailed
from chameleon_lora.errors import AdapterError

torch = pytest.importorskip("torch")

from chameleon_lora.engine_vllm.worker.copier import CopyJob, ThreadCopier  # noqa: E402
from chameleon_lora.engine_vllm.worker.device_store import (  # noqa: E402
    DeviceCopy,
    DeviceStore,
    require_equal,
)
from chameleon_lora.engine_vllm.worker.packed_adapter import (  # noqa: E402
    PackedAdapter,
    Piece,
    StockCopy,
    packed_over,
)

T = TypeVar("T")
BLOCKS, LAYERS, PAGE = 12, 3, 96  # a page's bytes: no row of the pieces below fits it evenly


class HeldCopier:
    """A ThreadCopier whose copies do not begin to write before `go`."""

    def __init__(self) -> None:
        self._copier = ThreadCopier()
        self.go, self.has_begun = threading.Event(), threading.Event()

    def start(self, work: Callable[[], T]) -> CopyJob[T]:
        """Begins, and waits in the thread."""

        def held() -> T:
            self.has_begun.set()
            self.go.wait()
            return work()

        return self._copier.start(held)

    def close(self) -> None:
        """Of the copier behind."""
        self._copier.close()


class BreakingCopier:
    """A ThreadCopier whose first copy breaks."""

    def __init__(self) -> None:
        self._copier = ThreadCopier()
        self._is_broken = True

    def start(self, work: Callable[[], T]) -> CopyJob[T]:
        """Begins, in the thread."""

        def broken() -> T:
            raise IndexError("list index out of range")

        is_broken, self._is_broken = self._is_broken, False
        return self._copier.start(broken if is_broken else work)

    def close(self) -> None:
        """Of the copier behind."""
        self._copier.close()


def runner(kv_dtype: Any = torch.float32) -> Any:
    """A model runner as far as its KV cache."""
    config = SimpleNamespace(num_blocks=BLOCKS, kv_cache_groups=[])
    caches = [torch.zeros(BLOCKS, PAGE // kv_dtype.itemsize, dtype=kv_dtype) for _ in range(LAYERS)]
    return SimpleNamespace(kv_caches=caches, kv_cache_config=config)


def image(adapter_id: int, dtype: Any = torch.float32) -> PackedAdapter:
    """A few odd matrices of noise."""
    pieces, offset = [], 0
    for rows, columns in ((3, 7), (1, 30), (5, 5), (40, 1), (2, 64)):
        nbytes = rows * columns * dtype.itemsize
        pieces.append(Piece("layer", 0, "a", rows, columns, offset, nbytes))
        offset += -(-nbytes // 256) * 256
    generator = torch.Generator().manual_seed(adapter_id)
    flat = torch.zeros(offset, dtype=torch.uint8)
    made = packed_over(flat, adapter_id, 8, dtype, tuple(pieces))
    for view in made.views:
        view.copy_(torch.randn(view.shape, generator=generator))
    return made


@pytest.fixture
def store() -> Iterator[DeviceStore]:
    made = DeviceStore(ThreadCopier())
    made.runner = runner()
    yield made
    made.close()


@pytest.fixture
def held() -> Iterator[tuple[DeviceStore, HeldCopier]]:
    copier = HeldCopier()
    made = DeviceStore(copier)
    made.runner = runner()
    yield made, copier
    copier.go.set()
    made.close()


def blocks_of(source: PackedAdapter, seed: int | None = None) -> tuple[int, ...]:
    """As many as it needs: the first ones, or some anywhere."""
    needed = -(-source.nbytes // (LAYERS * PAGE))
    if seed is None:
        return tuple(range(1, needed + 1))
    return tuple(random.Random(seed).sample(range(BLOCKS), needed))


def ack_of(store: DeviceStore) -> Promoted | PromotionFailed:
    """The next one."""
    while not (acks := store.poll()):
        pass
    (ack,) = acks
    return ack


def promoted(store: DeviceStore, source: PackedAdapter, blocks: tuple[int, ...]) -> DeviceCopy:
    """The complete copy."""
    store.promote(PromoteAdapter(source.adapter_id, 0, blocks), source)
    assert isinstance(ack_of(store), Promoted)
    found = store.try_get(source.adapter_id, source)
    assert found is not None
    return found


def put_together(found: DeviceCopy) -> list[Any]:
    """The pieces, from their parts."""
    pieces = [torch.full((p.rows, p.columns), torch.nan, dtype=found.dtype) for p in found.pieces]
    for (piece, region), view in zip(found.parts, found.views, strict=True):
        target = pieces[piece] if region is None else pieces[piece][region]
        assert target.shape == view.shape
        assert bool(target.isnan().all())
        target.copy_(view)
    return pieces


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16, torch.int8])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("seed", [None, 1, 2, 3])
def test_a_copy_has_the_bytes_of_the_host_image(
    store: DeviceStore, dtype: Any, kv_dtype: Any, seed: int | None
) -> None:
    """Each element of each matrix once, for adjacent and scattered blocks that split rows."""
    store.runner = runner(kv_dtype)
    source = image(1, dtype)
    found = promoted(store, source, blocks_of(source, seed))
    for expected, piece in zip(source.views, put_together(found), strict=True):
        assert torch.equal(expected, piece)
    require_equal(source, found)
    assert found.pieces is source.pieces


def test_a_piece_in_one_run_is_one_part(store: DeviceStore) -> None:
    """Adjacent blocks divide pieces only where a layer's pages end."""
    source = image(1)
    blocks = blocks_of(source)
    adjacent = promoted(store, source, blocks)
    scattered = promoted(store, source, blocks[::-1])
    assert len(source.pieces) <= len(adjacent.parts) < len(scattered.parts)


def test_promotions_are_answered_with_their_serial(store: DeviceStore) -> None:
    """Once each."""
    source = image(4)
    store.promote(PromoteAdapter(4, 17, blocks_of(source)), source)
    ack = ack_of(store)
    assert isinstance(ack, Promoted)
    assert (4, 17) == (ack.adapter_id, ack.serial)
    assert [] == store.poll()


def test_an_unfinished_copy_is_not_used(held: tuple[DeviceStore, HeldCopier]) -> None:
    """The host copy serves until it is complete."""
    store, copier = held
    source = image(1)
    store.promote(PromoteAdapter(1, 0, blocks_of(source)), source)
    copier.has_begun.wait()
    assert store.try_get(1, source) is None
    assert [] == store.poll()
    copier.go.set()
    assert isinstance(ack_of(store), Promoted)
    assert store.try_get(1, source) is not None


def test_a_demotion_waits_for_the_copy_under_way(held: tuple[DeviceStore, HeldCopier]) -> None:
    """What is written into the blocks after it stays."""
    store, copier = held
    source = image(1)
    store.promote(PromoteAdapter(1, 0, blocks_of(source)), source)
    copier.has_begun.wait()
    threading.Timer(0.05, copier.go.set).start()
    store.demote(1)
    for cache in store.runner.kv_caches:
        cache.fill_(5.0)
    store.close()  # ends the thread: nothing can be written later
    assert all(bool((cache == 5.0).all()) for cache in store.runner.kv_caches)
    assert ([], None) == (store.poll(), store.try_get(1, source))


def test_a_demotion_of_a_copy_not_begun_writes_nothing(
    held: tuple[DeviceStore, HeldCopier],
) -> None:
    """It does not wait for the copies before it."""
    store, copier = held
    first, second = image(1), image(2)
    blocks = blocks_of(first)
    later = tuple(b for b in range(BLOCKS) if b not in blocks)[: len(blocks)]
    store.promote(PromoteAdapter(1, 0, blocks), first)
    copier.has_begun.wait()
    store.promote(PromoteAdapter(2, 0, later), second)
    store.demote(2)
    copier.go.set()
    assert isinstance(ack_of(store), Promoted)
    assert not any(bool(cache[list(later)].any()) for cache in store.runner.kv_caches)


def test_a_new_promotion_replaces_the_old(store: DeviceStore) -> None:
    """Elsewhere, after a demotion or without one."""
    source = image(1)
    for seed in (1, 2, 3):
        found = promoted(store, source, blocks_of(source, seed))
        require_equal(source, found)
        if seed == 2:
            store.demote(1)
            assert store.try_get(1, source) is None


@pytest.mark.parametrize(
    ("blocks", "reason"),
    [
        ((1, 2, 3), r"Adapter 1 needs \d KV blocks of 288 bytes .* but was given 3"),
        ((1, 2, 3, 4, 5, 6, 6, 7), "must be different and below 12"),
        ((1, 2, 3, 4, 5, 6, 7, 12), "must be different and below 12"),
        ((-1, 2, 3, 4, 5, 6, 7, 8), "must be different and below 12"),
    ],
)
def test_blocks_that_cannot_hold_it_stay_as_they_are(
    store: DeviceStore, blocks: tuple[int, ...], reason: str
) -> None:
    """Answered with the numbers, and not for good."""
    source = image(1)
    store.promote(PromoteAdapter(1, 3, blocks), source)
    ack = ack_of(store)
    assert isinstance(ack, PromotionFailed)
    assert (1, 3, False) == (ack.adapter_id, ack.serial, ack.is_final)
    with pytest.raises(AssertionError, match=reason):
        raise AssertionError(ack.reason)
    assert not any(bool(cache.any()) for cache in store.runner.kv_caches)
    assert store.try_get(1, source) is None


def test_what_is_no_plain_run_of_bytes_is_not_promoted(store: DeviceStore) -> None:
    """Another adapter may be."""
    store.promote(PromoteAdapter(1, 0, (1, 2)), StockCopy(1, 8, 100, None))
    ack = ack_of(store)
    assert isinstance(ack, PromotionFailed)
    assert not ack.is_final


def test_a_kv_cache_of_another_kind_is_a_final_answer(
    store: DeviceStore, caplog: pytest.LogCaptureFixture
) -> None:
    """Each promotion is refused with the reason; one warning says that host memory serves."""
    store.runner.kv_caches = [torch.zeros(2, BLOCKS, 16)]
    source = image(1)
    for serial in range(2):
        store.promote(PromoteAdapter(1, serial, blocks_of(source)), source)
        ack = ack_of(store)
        assert isinstance(ack, PromotionFailed)
        assert ack.is_final
        assert "not divided into 12 blocks" in ack.reason
    assert 1 == sum("host memory serves" in record.message for record in caplog.records)


def test_a_copy_that_breaks_is_an_answer(caplog: pytest.LogCaptureFixture) -> None:
    """The reason is told, the copy not used, and the next promotion works."""
    store, source = DeviceStore(BreakingCopier()), image(1)
    store.runner = runner()
    store.promote(PromoteAdapter(1, 0, blocks_of(source)), source)
    ack = ack_of(store)
    assert isinstance(ack, PromotionFailed)
    assert "list index out of range" in ack.reason
    assert store.try_get(1, source) is None
    assert 1 == len(caplog.records)
    promoted(store, source, blocks_of(source))
    store.close()


def test_a_kv_cache_made_anew_holds_no_old_copies(store: DeviceStore) -> None:
    """The first promotion into the new one forgets those of the old."""
    first, second = image(1), image(2)
    promoted(store, first, blocks_of(first))
    old, store.runner = store.runner, runner()
    found = promoted(store, second, blocks_of(second))
    require_equal(second, found)
    assert store.try_get(1, first) is None
    assert any(bool(cache.any()) for cache in old.kv_caches)


def test_debug_checks_find_foreign_bytes(store: DeviceStore) -> None:
    """A copy that something wrote into is an error that names the adapter and the layer."""
    source = image(1)
    promoted(store, source, blocks_of(source))
    store.debug_checks = True
    assert store.try_get(1, source) is not None
    store.runner.kv_caches[0][1, 0] += 1.0
    with pytest.raises(AdapterError, match=r"Adapter 1's copy in the KV cache.*layer differs"):
        store.try_get(1, source)


@pytest.mark.parametrize("kv_dtype", [torch.float32, torch.bfloat16])
def test_blocks_given_up_hold_finite_keys_and_values(store: DeviceStore, kv_dtype: Any) -> None:
    """Half a float may read as nan, which attention would multiply with 0: such blocks are cleared."""
    store.runner = runner(kv_dtype)
    source = image(1)
    source.flat.view(torch.int32)[0] = 0x3F80_7FC0  # fp32 1.0009, whose lower half is a bf16 nan
    blocks = blocks_of(source, seed=1)
    promoted(store, source, blocks)
    has_nan = any(bool(cache.isnan().any()) for cache in store.runner.kv_caches)
    assert has_nan is (kv_dtype is torch.bfloat16)
    store.demote(1)
    assert all(bool(cache.isfinite().all()) for cache in store.runner.kv_caches)
    is_cleared = not any(bool(cache.any()) for cache in store.runner.kv_caches)
    assert is_cleared is (kv_dtype is torch.bfloat16)
