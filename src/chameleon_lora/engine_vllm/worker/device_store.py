"""Adapters in KV-cache blocks: their exact bytes, put there in the background.

Such a copy is a second one, the host keeps its own: whatever fails here, that one serves.
"""

import logging
from bisect import bisect_right
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Any, NamedTuple

import torch

from chameleon_lora.engine_vllm.event_log import stopwatch_s
from chameleon_lora.engine_vllm.messages import PromoteAdapter, Promoted, PromotionFailed
from chameleon_lora.engine_vllm.worker.copier import Copier, CopyJob
from chameleon_lora.engine_vllm.worker.kv_pages import KvPages, PageRun, cache_tensors, kv_pages_of
from chameleon_lora.engine_vllm.worker.packed_adapter import (
    HostCopy,
    PackedAdapter,
    Piece,
    StockCopy,
)
from chameleon_lora.errors import AdapterError, UnsupportedLayoutError

_logger = logging.getLogger(f"vllm.{__name__}")


class PiecePart(NamedTuple):
    """What of a piece lies in one run of memory: some rows and columns, or None for all of it."""

    piece: int
    region: tuple[slice, slice] | None


@dataclass(frozen=True, slots=True)
class DeviceCopy:
    """An adapter in KV-cache blocks, as SlotWriter takes it.

    Attributes:
        pieces: those of the host copy, the very same tuple.
        parts: the pieces, divided where memory does not go on.
        views: the parts, in the KV cache.
    """

    adapter_id: int
    rank: int
    dtype: torch.dtype
    pieces: tuple[Piece, ...]
    parts: tuple[PiecePart, ...]
    views: list[torch.Tensor]


@dataclass(slots=True)
class _Promotion:
    """One adapter's way into its blocks.

    Attributes:
        is_foreign: its bytes, read as keys and values of another type, could be nan.
    """

    command: PromoteAdapter
    pages: KvPages
    is_foreign: bool
    start_s: float
    job: CopyJob[DeviceCopy]
    is_answered: bool = False


class DeviceStore:
    """The device copies on this rank; used by the thread that runs steps.

    Invariant: nothing writes into the blocks of an adapter that is not in `_promotions`.

    Attributes:
        runner: vLLM's model runner, whose KV cache is made after the LoRA manager; None till then.
        debug_checks: whether copies are compared with the host's whenever they are used.
    """

    def __init__(self, copier: Copier, *, debug_checks: bool = False) -> None:
        self.runner: Any = None
        self.debug_checks = debug_checks
        self._copier = copier
        self._promotions: dict[int, _Promotion] = {}
        self._failures: list[PromotionFailed] = []
        self._pages: KvPages | UnsupportedLayoutError | None = None
        self._pages_at: list[Any] | None = None

    def promote(self, command: PromoteAdapter, host_copy: HostCopy) -> None:
        """Begins to copy into the command's blocks, which nobody else uses; answered by `poll`."""
        self.demote(command.adapter_id)
        start_s = stopwatch_s()
        try:
            packed, pages = _require_packed(host_copy), self._kv_pages()
            _require_room(command, packed, pages)
            elements = pages.elements(packed.dtype)
        except AdapterError as error:
            self._fail(command, error)
            return
        except UnsupportedLayoutError as error:
            self._fail(command, error, is_final=True)
            return

        def copy_and_plan() -> DeviceCopy:
            pages.store(packed.flat, command.blocks)
            return _device_copy(packed, pages.runs(command.blocks, packed.nbytes), elements)

        job = self._copier.start(copy_and_plan)
        is_foreign = pages.dtypes != {packed.dtype}
        self._promotions[command.adapter_id] = _Promotion(command, pages, is_foreign, start_s, job)

    def demote(self, adapter_id: int) -> None:
        """Forgets the copy; its blocks may be written by whatever the caller issues from now on.

        Attention may multiply what a block held before with 0, so they are left with finite numbers.
        """
        promotion = self._promotions.pop(adapter_id, None)
        if promotion is not None:
            promotion.job.end()
            if promotion.is_foreign:
                promotion.pages.clear(promotion.command.blocks)

    def try_get(self, adapter_id: int, host_copy: HostCopy) -> DeviceCopy | None:
        """The adapter's complete copy, or None if there is none on this rank, or not yet.

        Raises:
            AdapterError: debug_checks, and its bytes are not those of the host copy.
        """
        promotion = self._promotions.get(adapter_id)
        if promotion is None or not promotion.job.try_join():
            return None
        try:
            device_copy = promotion.job.result()
        except Exception:  # noqa: BLE001  # `poll` says so
            return None
        if self.debug_checks:
            require_equal(_require_packed(host_copy), device_copy)
        return device_copy

    def poll(self) -> list[Promoted | PromotionFailed]:
        """What ended since the last call; never waits."""
        acks: list[Promoted | PromotionFailed] = [*self._failures]
        self._failures.clear()
        for adapter_id, promotion in list(self._promotions.items()):
            if promotion.is_answered or not promotion.job.is_done():
                continue
            promotion.is_answered = True
            serial, seconds = promotion.command.serial, stopwatch_s() - promotion.start_s
            try:
                promotion.job.result()
            except Exception as error:
                _logger.exception("Copying adapter %d into the KV cache failed", adapter_id)
                self.demote(adapter_id)
                acks.append(PromotionFailed(adapter_id, serial, str(error)))
            else:
                acks.append(Promoted(adapter_id, serial, seconds))
        return acks

    def forget(self) -> None:
        """Afterwards there are no copies, and none is under way: the KV cache's memory goes."""
        for promotion in self._promotions.values():
            promotion.job.end()
        self._promotions.clear()

    def close(self) -> None:
        """Ends what is under way, and the copier's thread."""
        self.forget()
        self._copier.close()

    def _kv_pages(self) -> KvPages:
        """The runner's, made anew if its KV cache was; what was promoted before is then gone.

        Raises:
            UnsupportedLayoutError: it cannot hold adapters.
        """
        found_at = [(t.data_ptr(), t.shape, t.stride()) for t in cache_tensors(self.runner)]
        if self._pages is None or found_at != self._pages_at:
            self.forget()
            self._pages_at = found_at
            try:
                self._pages = kv_pages_of(self.runner)
            except UnsupportedLayoutError as error:
                self._pages = error
                _logger.warning("No adapter is kept in the KV cache, host memory serves: %s", error)
        if isinstance(self._pages, UnsupportedLayoutError):
            raise self._pages
        return self._pages

    def _fail(self, command: PromoteAdapter, error: Exception, *, is_final: bool = False) -> None:
        failed = PromotionFailed(command.adapter_id, command.serial, str(error), is_final)
        self._failures.append(failed)


def require_equal(packed: PackedAdapter, device_copy: DeviceCopy) -> None:
    """Nothing if all bytes of the device's copy are those of the host's; slow, for debugging.

    Raises:
        AdapterError: naming the adapter and the first layer that differs.
    """
    for part, found in zip(device_copy.parts, device_copy.views, strict=True):
        whole = packed.views[part.piece]
        expected = whole if part.region is None else whole[part.region]
        if not torch.equal(expected.view(torch.uint8), found.cpu().view(torch.uint8)):
            raise AdapterError(
                f"Adapter {packed.adapter_id}'s copy in the KV cache is not its host copy: "
                f"{packed.pieces[part.piece].module} differs"
            )


def parts_of(
    pieces: Sequence[Piece], runs: Sequence[PageRun], itemsize: int
) -> Iterator[tuple[PiecePart, int, int]]:
    """The pieces' parts, each with its run's index and its first byte within that run.

    Where a run ends inside a row, the rest of that row, the whole rows and the begun one are three.
    """
    ends = [run.first + run.nbytes for run in runs]
    for index, piece in enumerate(pieces):
        stop = piece.offset_bytes + piece.nbytes
        at = bisect_right(ends, piece.offset_bytes)
        if stop <= ends[at]:
            yield PiecePart(index, None), at, piece.offset_bytes - runs[at].first
            continue
        first = piece.offset_bytes
        while first < stop:
            last = min(stop, ends[at])
            span = range(
                (first - piece.offset_bytes) // itemsize, (last - piece.offset_bytes) // itemsize
            )
            for begin, region in _rectangles(span, piece.columns):
                offset = piece.offset_bytes + begin * itemsize - runs[at].first
                yield PiecePart(index, region), at, offset
            first, at = last, at + 1


def _rectangles(span: range, columns: int) -> Iterator[tuple[int, tuple[slice, slice]]]:
    """A span of a matrix' elements as rectangles, each with its first element."""
    row_ends = [-(-span.start // columns) * columns, span.stop // columns * columns]
    if row_ends[0] > row_ends[1]:  # within one row
        row_ends = []
    for begin, end in pairwise([span.start, *row_ends, span.stop]):
        if begin == end:
            continue
        row, column = divmod(begin, columns)
        rows = max(1, (end - begin) // columns)
        width = (end - begin) // rows
        yield begin, (slice(row, row + rows), slice(column, column + width))


def _device_copy(
    packed: PackedAdapter, runs: Sequence[PageRun], elements: Sequence[torch.Tensor]
) -> DeviceCopy:
    parts, views = [], []
    itemsize = packed.dtype.itemsize
    for part, at, offset in parts_of(packed.pieces, runs, itemsize):
        piece, run = packed.pieces[part.piece], runs[at]
        rows, columns = piece.rows, piece.columns
        if part.region is not None:
            rows, columns = (s.stop - s.start for s in part.region)
        first = (run.offset + offset) // itemsize
        views.append(elements[run.storage].as_strided((rows, columns), (columns, 1), first))
        parts.append(part)
    return DeviceCopy(
        packed.adapter_id, packed.rank, packed.dtype, packed.pieces, tuple(parts), views
    )


def _require_packed(host_copy: HostCopy) -> PackedAdapter:
    if isinstance(host_copy, StockCopy):
        raise AdapterError(
            f"Adapter {host_copy.adapter_id} changes layers that only vLLM's own code can fill"
        )
    return host_copy


def _require_room(command: PromoteAdapter, packed: PackedAdapter, pages: KvPages) -> None:
    blocks, needed = command.blocks, pages.blocks_for(packed.nbytes)
    if len(blocks) < needed:
        raise AdapterError(
            f"Adapter {packed.adapter_id} needs {needed} KV blocks of {pages.block_bytes} bytes "
            f"on this rank for its {packed.nbytes} bytes, but was given {len(blocks)}"
        )
    if len(set(blocks)) < len(blocks) or not all(0 <= b < pages.num_blocks for b in blocks):
        raise AdapterError(
            f"Adapter {packed.adapter_id} was given KV blocks {list(blocks)}; "
            f"they must be different and below {pages.num_blocks}"
        )
