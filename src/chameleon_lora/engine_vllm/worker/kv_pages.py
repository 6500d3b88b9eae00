"""The KV cache as plain bytes, so that blocks no request needs can hold an adapter.

A block's number owns one page in each layer's cache. An adapter in n blocks lies layer by layer: the
first layer's n pages in the order of the blocks, then the second's. So storing it is one copy a layer.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations
from math import gcd, prod
from typing import Any

import torch

from chameleon_lora.errors import UnsupportedLayoutError

_WORDS = {8: torch.int64, 4: torch.int32, 2: torch.int16, 1: torch.uint8}


@dataclass(frozen=True, slots=True)
class PageRun:
    """Bytes of an adapter that follow one another in memory too.

    Attributes:
        first: the adapter's byte at which it begins; runs leave no gap.
        storage: which of KvPages' storages.
        offset: the first byte's place there.
    """

    first: int
    nbytes: int
    storage: int
    offset: int


@dataclass(frozen=True, slots=True)
class _Pages:
    """One layer's: that of block b is `page` bytes from `offset` + b * `stride` of the storage."""

    storage: int
    offset: int
    stride: int
    page: int

    def end(self, num_blocks: int) -> int:
        """One past the last byte."""
        return self.offset + (num_blocks - 1) * self.stride + self.page


class KvPages:
    """The pages of one runner's KV cache; valid while its tensors stay where they are.

    Attributes:
        block_bytes: of all pages of a block.
        dtypes: as what attention kernels read them.
    """

    def __init__(
        self,
        storages: Sequence[torch.Tensor],
        pages: Sequence[_Pages],
        num_blocks: int,
        dtypes: frozenset[torch.dtype],
    ) -> None:
        """For `kv_pages_of`: storages as uint8, pages that overlap nowhere, what kernels read."""
        self.num_blocks = num_blocks
        self.dtypes = dtypes
        self.block_bytes = sum(one.page for one in pages)
        self._storages = tuple(storages)
        self._pages = tuple(pages)
        self._word = gcd(8, *(n for one in pages for n in (one.offset, one.stride, one.page)))
        words = [_as(storage, _WORDS[self._word]) for storage in storages]
        self._views = [
            words[one.storage].as_strided(
                (num_blocks, one.page // self._word),
                (one.stride // self._word, 1),
                one.offset // self._word,
            )
            for one in pages
        ]

    @property
    def device(self) -> torch.device:
        """The device that all of the KV cache's storages are on."""
        return self._storages[0].device

    def blocks_for(self, nbytes: int) -> int:
        """Blocks that so many bytes take."""
        return -(-nbytes // self.block_bytes)

    def store(self, data: torch.Tensor, blocks: Sequence[int]) -> None:
        """Copies bytes into the blocks, those beyond the data left as they are.

        Args:
            data: uint8, flat, at most len(blocks) * block_bytes; a multiple of 8 bytes.
            blocks: different numbers, all below num_blocks.
        """
        words, ids = _as(data, _WORDS[self._word]), self._ids(blocks)
        for view in self._views:
            page = view.shape[1]
            chunk, words = words[: len(blocks) * page], words[len(blocks) * page :]
            full, rest = divmod(chunk.numel(), page)
            chunk = chunk.to(self.device, non_blocking=True)
            if full:
                view.index_copy_(0, ids[:full], chunk[: full * page].view(full, page))
            if rest:
                view[blocks[full], :rest].copy_(chunk[full * page :])

    def clear(self, blocks: Sequence[int]) -> None:
        """Zeros over every layer's pages of these blocks: attention needs finite numbers there."""
        ids = self._ids(blocks)
        with torch.inference_mode():  # as vLLM's tensors want it; acks are polled outside of it
            for view in self._views:
                view.index_fill_(0, ids, 0)

    def runs(self, blocks: Sequence[int], nbytes: int) -> list[PageRun]:
        """Where the first `nbytes` of an adapter in these blocks lie; few if blocks are adjacent."""
        found: list[PageRun] = []
        first = 0
        for pages in self._pages:
            for block in blocks:
                size = min(pages.page, nbytes - first)
                if size <= 0:
                    return found
                run = PageRun(first, size, pages.storage, pages.offset + block * pages.stride)
                first += size
                last = found[-1] if found else None
                if last and (last.storage, last.offset + last.nbytes) == (run.storage, run.offset):
                    run = PageRun(last.first, last.nbytes + size, last.storage, last.offset)
                    found.pop()
                found.append(run)
        return found

    def elements(self, dtype: torch.dtype) -> list[torch.Tensor]:
        """The storages as flat tensors of this type, to be indexed by offset // itemsize.

        Raises:
            UnsupportedLayoutError: pages begin or end inside an element.
        """
        if self._word % dtype.itemsize:
            raise UnsupportedLayoutError(
                f"KV-cache pages are laid out in units of {self._word} bytes, "
                f"which {dtype} of {dtype.itemsize} does not divide"
            )
        return [_as(storage, dtype) for storage in self._storages]

    def _ids(self, blocks: Sequence[int]) -> torch.Tensor:
        is_cuda = self.device.type == "cuda"  # where only pinned memory is copied without a wait
        ids = torch.tensor(blocks, pin_memory=is_cuda)
        return ids.to(self.device, non_blocking=True)


def kv_pages_of(runner: Any) -> KvPages:
    """The pages of a vLLM model runner (V1 or V2) whose KV cache exists.

    Raises:
        UnsupportedLayoutError: a block's number does not own the same whole bytes in each layer.
    """
    tensors = cache_tensors(runner)
    config = getattr(runner, "kv_cache_config", None)
    if not tensors or config is None:
        raise UnsupportedLayoutError("this worker has no KV cache")
    _require_attention(config)
    if any(tensor.device != tensors[0].device for tensor in tensors):
        raise UnsupportedLayoutError("the KV cache is spread over several devices")
    storages: dict[int, torch.Tensor] = {}
    for tensor in tensors:
        storage = tensor.untyped_storage()
        storages.setdefault(storage.data_ptr(), _bytes_of(storage))
    order = {pointer: index for index, pointer in enumerate(storages)}
    pages = list(
        dict.fromkeys(  # layers that share a cache, and groups laid over one another
            _pages_of(tensor, config.num_blocks, order[tensor.untyped_storage().data_ptr()])
            for tensor in tensors
        )
    )
    for one, other in combinations(pages, 2):
        if one.storage == other.storage and not _is_disjoint(one, other, config.num_blocks):
            raise UnsupportedLayoutError(
                f"two layers' pages may overlap ({one}, {other}, {config.num_blocks} blocks)"
            )
    dtypes = frozenset(tensor.dtype for tensor in tensors)
    return KvPages(list(storages.values()), pages, config.num_blocks, dtypes)


def cache_tensors(runner: Any) -> list[torch.Tensor]:
    """The runner's KV-cache tensors; an entry of its list may itself be a list."""
    return list(_flat(getattr(runner, "kv_caches", None) or ()))


def _flat(entries: Iterable[Any]) -> Iterator[torch.Tensor]:
    for entry in entries:
        if isinstance(entry, torch.Tensor):
            yield entry
        else:
            yield from _flat(entry)


def _require_attention(config: Any) -> None:
    """Nothing if each group's blocks hold keys and values, laid out per layer."""
    for group in config.kv_cache_groups:
        spec = group.kv_cache_spec
        per_layer = getattr(spec, "kv_cache_specs", None)
        for one in per_layer.values() if per_layer else (spec,):
            kinds = [kind.__name__ for kind in type(one).__mro__]
            if "MambaSpec" in kinds or not getattr(one, "has_layer_views", True):
                raise UnsupportedLayoutError(
                    f"its {kinds[0]} layers keep states, not pages of keys and values"
                )


def _pages_of(tensor: torch.Tensor, num_blocks: int, storage: int) -> _Pages:
    """One layer's pages, if each is compact; kernels may see a block as several smaller ones."""
    shape, strides, itemsize = tuple(tensor.shape), tensor.stride(), tensor.element_size()
    found = f"a layer's KV cache of shape {shape}, strides {strides}"
    parts, remainder = divmod(shape[0], num_blocks)
    if remainder or not parts:
        raise UnsupportedLayoutError(f"{found} is not divided into {num_blocks} blocks")
    elements = prod(shape[1:])
    inner = sorted(
        (stride, size) for stride, size in zip(strides[1:], shape[1:], strict=True) if size > 1
    )
    compact = 1
    for stride, size in inner:
        if stride != compact:
            break
        compact *= size
    if compact != elements or strides[0] < elements or (parts > 1 and strides[0] != elements):
        raise UnsupportedLayoutError(f"{found} has pages that are not compact")
    return _Pages(
        storage,
        tensor.storage_offset() * itemsize,
        parts * strides[0] * itemsize,
        parts * elements * itemsize,
    )


def _is_disjoint(one: _Pages, other: _Pages, num_blocks: int) -> bool:
    """Whether no page of one shares a byte with a page of the other; False if that is not clear."""
    first, second = sorted((one, other), key=lambda pages: pages.offset)
    if first.end(num_blocks) <= second.offset:
        return True
    if first.stride != second.stride:
        return False
    gap = (second.offset - first.offset) % first.stride
    return first.page <= gap and gap + second.page <= first.stride


def _bytes_of(storage: torch.UntypedStorage) -> torch.Tensor:
    return torch.empty(0, dtype=torch.uint8, device=storage.device).set_(storage)


def _as(flat: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """A tensor's bytes as another type; a tail too short for an element is left out."""
    return flat[: flat.numel() // dtype.itemsize * dtype.itemsize].view(dtype)
