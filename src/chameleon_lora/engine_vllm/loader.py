"""Reads adapters in the background, so that no step waits for a disk."""

import contextlib
import os
import queue
import sys
import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch

from chameleon_lora.adapters import require_servable
from chameleon_lora.engine_vllm.host_image import HostCopy, HostImage, Piece, pack
from chameleon_lora.engine_vllm.image_file import ImageFile, fingerprint_of
from chameleon_lora.engine_vllm.messages import LoadAdapter
from chameleon_lora.engine_vllm.observe import stopwatch_s
from chameleon_lora.errors import AdapterInvalidError

_SWITCH_INTERVAL_S = 0.0005
_READ_AHEAD_BYTES = 4 << 20
_REASON_CHARACTERS = 400
_KEEP_LATER = 16  # copies that may outlive their drop until a quiet moment; older ones go unkept


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one load: a host copy, or the one-line reason why there is none."""

    ticket: int
    adapter_id: int
    outcome: HostCopy | str
    seconds: float


class Reader(Protocol):
    """Where host copies come from; used by the loader's thread."""

    def read(self, command: LoadAdapter) -> HostCopy:
        """The adapter in owned memory; raises whatever went wrong."""
        ...

    def keep(self, command: LoadAdapter, host_copy: HostCopy) -> None:
        """Called after delivery, to make the next read of this adapter cheaper."""
        ...


class Loader:
    """One daemon thread that takes loads in order and delivers them on a queue.

    A load that fails is delivered as its reason; the thread outlives it.
    """

    def __init__(self, reader: Reader, prepare_thread: Callable[[], None] = lambda: None) -> None:
        self._reader = reader
        self._prepare_thread = prepare_thread
        self._orders: queue.SimpleQueue[tuple[int, LoadAdapter] | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._cancelled: set[int] = set()
        self._to_keep: deque[tuple[LoadAdapter, HostCopy]] = deque(maxlen=_KEEP_LATER)
        self._thread: threading.Thread | None = None

    def submit(self, ticket: int, command: LoadAdapter) -> None:
        """Queues a load; its delivery carries the ticket."""
        if self._thread is None:
            self._thread = threading.Thread(target=self._run, name="chameleon-loader", daemon=True)
            self._thread.start()
        self._orders.put((ticket, command))

    def cancel(self, ticket: int) -> None:
        """Skips the load if it has not begun; a later delivery of it may still come."""
        self._cancelled.add(ticket)

    def poll(self) -> list[Delivery]:
        """What was finished since the last call; never waits."""
        deliveries = []
        while not self._done.empty():  # only this caller takes from the queue
            deliveries.append(self._done.get())
        return deliveries

    def wait(self) -> Delivery:
        """The next delivery; waits for it. Call only while a load is under way."""
        return self._done.get()

    def close(self) -> None:
        """Waits for the load under way and ends the thread."""
        if self._thread is not None:
            self._orders.put(None)
            self._thread.join()
            self._thread = None

    def _run(self) -> None:
        self._prepare_thread()
        while (order := self._next_order()) is not None:
            ticket, command = order
            if ticket in self._cancelled:
                self._cancelled.discard(ticket)
                continue
            delivery = self._attempt(ticket, command)
            self._done.put(delivery)
            if not isinstance(delivery.outcome, str):
                self._to_keep.append((command, delivery.outcome))

    def _next_order(self) -> tuple[int, LoadAdapter] | None:
        """The next load; while none is due, what was read is kept for later."""
        while self._to_keep and self._orders.empty():
            self._reader.keep(*self._to_keep.popleft())
        return self._orders.get()

    def _attempt(self, ticket: int, command: LoadAdapter) -> Delivery:
        start = stopwatch_s()
        outcome: HostCopy | str
        try:
            outcome = self._reader.read(command)
        except Exception as error:  # noqa: BLE001  # whatever a file can cause becomes an answer
            outcome = reason_of(command, error)
        return Delivery(ticket, command.adapter_id, outcome, stopwatch_s() - start)


def reason_of(command: LoadAdapter, error: BaseException) -> str:
    """One line a user understands: which adapter, and why not."""
    text = " ".join(str(error).split()) or type(error).__name__
    text = text.removeprefix(f"adapter {Path(command.path).name!r}: ")
    absent = getattr(error.__cause__, "filename", None)
    if absent is not None:  # vLLM says that an adapter was not found, but not which file is missing
        text = f"there is no {absent}"
    elif isinstance(error, StopIteration):
        text = "it has no LoRA weights"
    elif isinstance(error, KeyError):
        text = f"its adapter_config.json or weights lack {text}"
    if len(text) > _REASON_CHARACTERS:
        text = text[:_REASON_CHARACTERS] + " ..."
    return f"Adapter {command.name!r} cannot be loaded: {text}"


class VllmReader:
    """Reads with vLLM's own code the first time, from a packed image later.

    vLLM's load and merge only read the manager, so the thread may use them beside running steps.
    """

    def __init__(self, worker_manager: Any, images: ImageFile | None) -> None:
        self._worker_manager = worker_manager
        self._images = images
        self._geometries: dict[tuple[Piece, ...], tuple[Piece, ...]] = {}

    def read(self, command: LoadAdapter) -> HostCopy:
        """The adapter in owned memory, from its packed image if its files are unchanged."""
        if self._images is not None:
            image = self._images.load(command.adapter_id, fingerprint_of(command.path))
            if image is not None:
                return image
        return self.read_files(command)

    def read_files(self, command: LoadAdapter) -> HostCopy:
        """The adapter from its own files; safe on any thread."""
        from vllm.lora.request import LoRARequest

        _check_files(command)
        _read_ahead(command.path)
        fused = {"is_3d_lora_weight": True} if command.is_3d else {}
        request = LoRARequest(command.name, command.adapter_id, command.path, **fused)
        lora_model = self._worker_manager._load_adapter(request)
        adapter_manager = self._worker_manager._adapter_manager
        adapter_manager._create_merged_loras_inplace(lora_model)
        host_copy = pack(adapter_manager, lora_model)
        return self._with_shared_geometry(host_copy)

    def keep(self, command: LoadAdapter, host_copy: HostCopy) -> None:
        """Writes the packed image, once per version of the adapter's files."""
        if self._images is None or not isinstance(host_copy, HostImage):
            return
        self._images.save_once(host_copy, fingerprint_of(command.path))

    def close(self) -> None:
        """Gives the disk space of the packed images back; nothing may be read afterwards."""
        if self._images is not None:
            self._images.close()
            self._images = None

    def _with_shared_geometry(self, host_copy: HostCopy) -> HostCopy:
        if not isinstance(host_copy, HostImage):
            return host_copy
        pieces = self._geometries.setdefault(host_copy.pieces, host_copy.pieces)
        return HostImage(
            host_copy.adapter_id,
            host_copy.rank,
            host_copy.dtype,
            host_copy.flat,
            pieces,
            host_copy.views,
        )


def prepare_loader_thread(device: torch.device) -> None:
    """Makes the calling thread a polite loader on that device.

    It computes on one core, which is not the steps' own where there is another, and gives the
    interpreter back within half a millisecond: a step's thread would otherwise wait 5 ms each time
    both want it.
    """
    if device.type == "cuda":
        torch.cuda.set_device(device)
    torch._C.set_num_threads(1)  # of this thread; vLLM blocks torch.set_num_threads on CPU
    sys.setswitchinterval(min(sys.getswitchinterval(), _SWITCH_INTERVAL_S))
    _leave_compute_cores()


def _leave_compute_cores() -> None:
    """Afterwards the thread runs elsewhere than the one that made it, if there is elsewhere.

    vLLM binds its compute threads to cores on CPU, and a thread inherits its maker's.
    """
    others = set(range(os.cpu_count() or 1)) - os.sched_getaffinity(0)
    with contextlib.suppress(OSError):  # not ours to use, as in a container
        os.sched_setaffinity(0, others or os.sched_getaffinity(0))


def _check_files(command: LoadAdapter) -> None:
    """Nothing if the files are sound and those that were announced.

    Files replaced behind a name's back would answer from another content's prefix cache.

    Raises:
        AdapterError: naming what is wrong with them.
    """
    folder = Path(command.path).expanduser()
    if not folder.is_dir():
        return  # a hub's name, which vLLM resolves
    found = require_servable(folder)
    if command.fingerprint and found.fingerprint != command.fingerprint:
        raise AdapterInvalidError(
            "its files changed after it was announced; ask again in a moment, "
            "or load it anew with load_inplace"
        )


def _read_ahead(path: str) -> None:
    """Afterwards the adapter's files are in the page cache: read in one go, the interpreter free.

    Parsing alone would fault them in page by page.
    """
    folder = Path(path).expanduser()
    if not folder.is_dir():
        return
    buffer = bytearray(_READ_AHEAD_BYTES)
    for file in folder.glob("adapter_model.*"):
        with file.open("rb", buffering=0) as stream:
            os.posix_fadvise(stream.fileno(), 0, 0, os.POSIX_FADV_SEQUENTIAL)
            while stream.readinto(buffer):
                pass
