"""Packed adapters on disk, so that an adapter's later loads are one read instead of a parse."""

import logging
import math
import os
import queue
import tempfile
import threading
from collections import OrderedDict
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass
from pathlib import Path

import torch

from chameleon_lora.adapters.watching import file_system_of
from chameleon_lora.engine_vllm.event_log import stopwatch_s
from chameleon_lora.engine_vllm.worker.packed_adapter import (
    PackedAdapter,
    Piece,
    empty_buffer,
    packed_over,
)

PATIENCE_S = (
    2.0  # and a second for so many bytes: a disk that takes longer costs more than it saves
)
SLOWEST_BYTES_PER_S = 50e6
FREE_PART = 10  # of what is free at the start, all workers together take no more than one such part
_MEMORY = ("tmpfs", "ramfs")
_CLOSE_LIMIT_S = 1.0
_logger = logging.getLogger(f"vllm.{__name__}")


@dataclass(frozen=True, slots=True)
class _Entry:
    fingerprint: str
    rank: int
    dtype: torch.dtype
    pieces: tuple[Piece, ...]
    offset_bytes: int
    nbytes: int
    pinned: bool


@dataclass(frozen=True, slots=True)
class _Job:
    work: Callable[[], PackedAdapter | None]
    patience_s: float
    answer: Future[PackedAdapter | None]


class DiskCache:
    """A ring of packed adapters in one unnamed file, which vanishes with the process.

    A new one takes the place of the oldest once the limit is used. One thread does all reading and
    writing, so nobody holds a lock meanwhile. Whatever fails costs speed only: on a disk that is full
    the file keeps the space it has, on one that is gone or broken nothing is kept, and one that hangs is
    asked no more until it answers.
    """

    def __init__(
        self,
        folder: Path | None,
        limit_bytes: int,
        workers: int = 1,
        prepare_thread: Callable[[], None] = lambda: None,
        patience_s: float = PATIENCE_S,
    ) -> None:
        """Opens the file in the background, and tells in the log what it does.

        Args:
            folder: None for the system's own for temporary files, unless that is in memory.
            limit_bytes: for all workers of this host together, who share the disk.
            workers: how many they are.
            prepare_thread: called by the thread, first of all.
            patience_s: how long a small adapter may take.
        """
        self._folder = folder
        self._limit_bytes = limit_bytes
        self._workers = workers
        self._prepare_thread = prepare_thread
        self._patience_s = patience_s
        self._end_bytes = 0
        self._told = ""  # the last failure in the log
        self._entries: OrderedDict[int, _Entry] = OrderedDict()  # by age, so by place in the ring
        self._jobs: queue.SimpleQueue[_Job | None] = queue.SimpleQueue()
        self._stuck_s = stopwatch_s() + patience_s  # the thread is stuck from then on
        self._thread = threading.Thread(target=self._run, name="chameleon-disk-cache", daemon=True)
        self._thread.start()

    def save(self, packed: PackedAdapter, fingerprint: str) -> None:
        """Keeps the packed adapter, in place of another with its id, if the disk lets it."""
        self._ask(lambda: self._save(packed, fingerprint), packed.nbytes)

    def load(self, adapter_id: int, fingerprint: str) -> PackedAdapter | None:
        """The packed adapter in fresh memory, or None if there is none of that very content."""
        entry = self._entries.get(adapter_id)
        if entry is None or entry.fingerprint != fingerprint:
            return None
        return self._ask(lambda: self._load(adapter_id, entry), entry.nbytes)

    def close(self) -> None:
        """Afterwards the disk space is free again, and nothing is kept any more."""
        self._jobs.put(None)
        self._thread.join(_CLOSE_LIMIT_S)

    def _ask(self, work: Callable[[], PackedAdapter | None], nbytes: int) -> PackedAdapter | None:
        """What the thread's work answers; None if that fails, or takes too long."""
        if stopwatch_s() > self._stuck_s:
            return None
        patience_s = self._patience_s + nbytes / SLOWEST_BYTES_PER_S
        job = _Job(work, patience_s, Future())
        self._jobs.put(job)
        try:
            return job.answer.result(patience_s)
        except TimeoutError:
            job.answer.cancel()
            return None

    def _run(self) -> None:
        self._prepare_thread()
        descriptor = self._try_open()
        if descriptor is None:
            self._stuck_s = -math.inf
            return
        self._descriptor = descriptor
        self._stuck_s = math.inf
        while (job := self._jobs.get()) is not None:
            if not job.answer.set_running_or_notify_cancel():
                continue
            self._stuck_s = stopwatch_s() + job.patience_s
            job.answer.set_result(self._try(job.work))
            self._stuck_s = math.inf
        self._stuck_s = -math.inf
        os.close(descriptor)

    def _try(self, work: Callable[[], PackedAdapter | None]) -> PackedAdapter | None:
        try:
            return work()
        except (OSError, MemoryError, RuntimeError) as error:  # torch's own is the last
            if self._told != str(error):
                self._told = str(error)
                _logger.warning("The disk cache failed, so files are read instead: %s", error)
            return None

    def _save(self, packed: PackedAdapter, fingerprint: str) -> None:
        known = self._entries.get(packed.adapter_id)
        if packed.nbytes > self._limit_bytes or (known and known.fingerprint == fingerprint):
            return
        self._entries.pop(packed.adapter_id, None)
        offset = self._make_room(packed.nbytes)
        try:
            _write_all(self._descriptor, packed.flat, offset)
        except OSError:
            self._end_bytes = self._limit_bytes  # the next goes to the start, which has its space
            raise
        self._entries[packed.adapter_id] = _Entry(
            fingerprint,
            packed.rank,
            packed.dtype,
            packed.pieces,
            offset,
            packed.nbytes,
            packed.flat.is_pinned(),
        )

    def _load(self, adapter_id: int, entry: _Entry) -> PackedAdapter | None:
        if self._entries.get(adapter_id) is not entry:
            return None  # others took its place meanwhile
        flat = empty_buffer(entry.nbytes, pinned=entry.pinned)
        _read_all(self._descriptor, flat, entry.offset_bytes)
        return packed_over(flat, adapter_id, entry.rank, entry.dtype, entry.pieces)

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

    def _try_open(self) -> int | None:
        """The unnamed file, its limit set and told in the log; None if there is to be none."""
        try:
            folder = self._folder or Path(tempfile.gettempdir())
            if self._folder is None and file_system_of(folder) in _MEMORY:
                _logger.info(
                    "Adapters read once are not kept on disk: %s is in memory. Name another folder "
                    "in serving.disk_cache_dir to have later loads of them read faster.", folder,
                )  # fmt: skip
                return None
            status = os.statvfs(folder)
            part_bytes = status.f_bavail * status.f_frsize // FREE_PART
            self._limit_bytes = min(self._limit_bytes, part_bytes) // self._workers
            descriptor, name = tempfile.mkstemp(prefix="chameleon-adapters-", dir=folder)
            Path(name).unlink()
        except OSError as error:
            _logger.warning("Adapters read once are not kept on disk: %s", error)
            return None
        _logger.info(
            "Adapters read once are kept packed in an unnamed file in %s, of %d bytes at most for "
            "each of %d workers (serving.disk_cache_bytes).", folder, self._limit_bytes, self._workers,
        )  # fmt: skip
        return descriptor


def _write_all(descriptor: int, flat: torch.Tensor, offset: int) -> None:
    """All of it, or the file is no longer than before: a full disk is not filled up by a piece."""
    rest, before = memoryview(flat.numpy()), os.fstat(descriptor).st_size
    try:
        while rest:
            written = os.pwrite(descriptor, rest, offset)
            rest, offset = rest[written:], offset + written
    except OSError:
        os.ftruncate(descriptor, before)
        raise


def _read_all(descriptor: int, flat: torch.Tensor, offset: int) -> None:
    rest = memoryview(flat.numpy())
    while rest:
        count = os.preadv(descriptor, [rest], offset)
        if count == 0:
            raise OSError("the disk cache's file ended early")
        rest, offset = rest[count:], offset + count
