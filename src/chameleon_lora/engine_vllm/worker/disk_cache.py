"""Packed images on disk, so that an adapter's later loads are one read instead of a parse."""

import contextlib
import os
import tempfile
import threading
from collections import OrderedDict
from dataclasses import dataclass
from pathlib import Path

import torch

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.untrusted import is_folder
from chameleon_lora.engine_vllm.worker.packed_adapter import (
    PackedAdapter,
    Piece,
    empty_buffer,
    image_over,
)

DEFAULT_LIMIT_BYTES = 8 << 30
Fingerprint = tuple[tuple[str, int, int], ...]


@dataclass(frozen=True, slots=True)
class _Entry:
    fingerprint: Fingerprint
    rank: int
    dtype: torch.dtype
    pieces: tuple[Piece, ...]
    offset_bytes: int
    nbytes: int
    pinned: bool


class DiskCache:
    """A ring of images in one unnamed file, which vanishes with the process however that ends.

    A new image takes the place of the oldest once `limit_bytes` are used. The loader's threads share
    it, one at a time. A disk that is full or broken costs speed only: images are not kept.
    """

    def __init__(self, folder: Path | None, limit_bytes: int = DEFAULT_LIMIT_BYTES) -> None:
        self._limit_bytes = limit_bytes
        self._end_bytes = 0
        self._lock = threading.RLock()
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by age, so by place in the ring
        self._descriptor, name = tempfile.mkstemp(prefix="chameleon-images-", dir=folder)
        Path(name).unlink()

    def save(self, image: PackedAdapter, fingerprint: Fingerprint) -> bool:
        """Whether the image was kept; replaces an earlier one of the same adapter."""
        with self._lock:
            if image.nbytes > self._limit_bytes:
                return False
            self._entries.pop(image.adapter_id, None)
            offset = self._make_room(image.nbytes)
            try:
                _write_all(self._descriptor, image.flat, offset)
            except OSError:
                return False
            self._entries[image.adapter_id] = _Entry(
                fingerprint,
                image.rank,
                image.dtype,
                image.pieces,
                offset,
                image.nbytes,
                image.flat.is_pinned(),
            )
            return True

    def save_once(self, image: PackedAdapter, fingerprint: Fingerprint) -> None:
        """Keeps the image unless one of that very source is kept already."""
        with self._lock:
            entry = self._entries.get(image.adapter_id)
            if entry is None or entry.fingerprint != fingerprint:
                self.save(image, fingerprint)

    def load(self, adapter_id: int, fingerprint: Fingerprint) -> PackedAdapter | None:
        """The adapter's image in fresh memory, or None if there is none of that very source."""
        with self._lock:
            entry = self._entries.get(adapter_id)
            if entry is None or entry.fingerprint != fingerprint:
                return None
            flat = empty_buffer(entry.nbytes, pinned=entry.pinned)
            try:
                _read_all(self._descriptor, flat, entry.offset_bytes)
            except OSError:
                return None
        return image_over(flat, adapter_id, entry.rank, entry.dtype, entry.pieces)

    def close(self) -> None:
        """Afterwards the disk space is free again, and nothing is kept any more."""
        with self._lock:
            self._entries.clear()
            self._limit_bytes = 0
            os.close(self._descriptor)

    def _make_room(self, nbytes: int) -> int:
        offset = self._end_bytes if self._end_bytes + nbytes <= self._limit_bytes else 0
        self._end_bytes = offset + nbytes
        overwritten = [
            adapter_id
            for adapter_id, entry in self._entries.items()
            if entry.offset_bytes < offset + nbytes and offset < entry.offset_bytes + entry.nbytes
        ]
        for adapter_id in overwritten:
            del self._entries[adapter_id]
        return offset


def fingerprint_of(path: str) -> Fingerprint:
    """Name, size and time of change of the adapter's files: equal only if nothing was rewritten.

    Never raises: a file that is not there counts as absent.
    """
    folder = Path(path).expanduser()
    if not is_folder(folder):
        return ((path, 0, 0),)
    found = []
    for file in (folder / CONFIG_NAME, folder / WEIGHTS_NAME):
        with contextlib.suppress(OSError):
            status = file.stat()
            found.append((str(file), status.st_size, status.st_mtime_ns))
    return tuple(found)


def _write_all(descriptor: int, flat: torch.Tensor, offset: int) -> None:
    rest = memoryview(flat.numpy())
    while rest:
        written = os.pwrite(descriptor, rest, offset)
        rest, offset = rest[written:], offset + written


def _read_all(descriptor: int, flat: torch.Tensor, offset: int) -> None:
    rest = memoryview(flat.numpy())
    while rest:
        count = os.preadv(descriptor, [rest], offset)
        if count == 0:
            raise OSError("the image file ended early")
        rest, offset = rest[count:], offset + count
