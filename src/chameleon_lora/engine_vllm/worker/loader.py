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

from chameleon_lora.adapters import AdapterLimits
from chameleon_lora.adapters.inspect import largest_bytes
from chameleon_lora.engine_vllm.event_log import stopwatch_s
from chameleon_lora.engine_vllm.messages import LoadAdapter, LoadFailed
from chameleon_lora.engine_vllm.sources import resolved
from chameleon_lora.engine_vllm.worker.disk_cache import DiskCache
from chameleon_lora.engine_vllm.worker.model_fit import require_fit, why_unknown
from chameleon_lora.engine_vllm.worker.packed_adapter import (
    WAY_OUT,
    HostCopy,
    PackedAdapter,
    Piece,
    StockCopy,
    pack,
)
from chameleon_lora.engine_vllm.worker.paged_lora import is_paged, only_in_slots
from chameleon_lora.engine_vllm.worker.sealed_copy import STAGED, sealed_copy
from chameleon_lora.errors import (
    AdapterError,
    AdapterInvalidError,
    AdapterUnfitError,
    AdapterUnreadableError,
)
from chameleon_lora.policy.plan import Fault

_SWITCH_INTERVAL_S = 0.0005
_REASON_CHARACTERS = 400
STALL_S = 1.0  # a load that takes longer may hang: the next one gets a thread of its own
MOST_THREADS = 16
MOST_GEOMETRIES = 64
_CLOSE_LIMIT_S = 1.0
_KEEP_LATER = 16  # copies that may outlive their drop until a quiet moment; older ones go unkept


@dataclass(slots=True, eq=False, weakref_slot=True)
class LoadOrder:
    """One load that was asked for. Cancelled, it is skipped if it has not begun."""

    command: LoadAdapter
    is_cancelled: bool = False


@dataclass(frozen=True, slots=True)
class ReadAdapter:
    """An adapter in owned memory, and the fingerprint of the files it was read from."""

    host_copy: HostCopy
    fingerprint: str


@dataclass(frozen=True, slots=True)
class Delivery:
    """What became of one load: the adapter, or why there is none."""

    order: LoadOrder
    outcome: ReadAdapter | LoadFailed
    seconds: float


class Reader(Protocol):
    """Where host copies come from; used by the loader's thread."""

    def read(self, command: LoadAdapter) -> ReadAdapter:
        """The adapter; raises whatever went wrong."""
        ...

    def keep(self, read: ReadAdapter) -> None:
        """Called after delivery, to make the next read of this adapter cheaper."""
        ...


class Loader:
    """A daemon thread that takes loads in order and delivers them on a queue.

    A load that fails is delivered as its reason; the thread outlives it. While every thread has been
    at its load for more than `stall_s`, a further one takes the loads that wait, up to MOST_THREADS:
    a disk that hangs holds up its own adapter only. Whoever finishes one too many ends.
    """

    def __init__(
        self,
        reader: Reader,
        prepare_thread: Callable[[], None] = lambda: None,
        stall_s: float = STALL_S,
        deliver: Callable[[Delivery], None] | None = None,
    ) -> None:
        """Starts nothing yet.

        Args:
            reader: used by the threads.
            prepare_thread: called by each thread, first of all.
            stall_s: a load that takes longer may hang.
            deliver: called by the threads, in place of what `poll` answers.
        """
        self._reader = reader
        self._prepare_thread = prepare_thread
        self._stall_s = stall_s
        self._orders: queue.SimpleQueue[LoadOrder | None] = queue.SimpleQueue()
        self._done: queue.SimpleQueue[Delivery] = queue.SimpleQueue()
        self._deliver = deliver or self._done.put
        self._to_keep: deque[ReadAdapter] = deque(maxlen=_KEEP_LATER)
        self._lock = threading.Lock()  # for the two below
        self._threads: dict[threading.Thread, float | None] = {}  # since when at a load

    def submit(self, command: LoadAdapter) -> LoadOrder:
        """Queues a load; its delivery names the order."""
        order = LoadOrder(command)
        self._orders.put(order)
        self._grow()
        return order

    def cancel(self, order: LoadOrder) -> None:
        """The load is skipped if it has not begun."""
        order.is_cancelled = True

    def poll(self) -> list[Delivery]:
        """What was finished since the last call; never waits."""
        self._grow()
        deliveries = []
        while not self._done.empty():  # only this caller takes from the queue
            deliveries.append(self._done.get())
        return deliveries

    def close(self) -> None:
        """Ends the threads; one whose load hangs ends with that, or with the process."""
        with self._lock:
            threads = list(self._threads)
            self._threads.clear()
        for _ in threads:
            self._orders.put(None)
        for thread in threads:
            thread.join(_CLOSE_LIMIT_S)

    def _grow(self) -> None:
        """Afterwards a thread takes what is queued, unless one is about to."""
        if self._orders.empty():
            return
        with self._lock:
            stalled = sum(self._is_stalled(since_s) for since_s in self._threads.values())
            if stalled < len(self._threads) or stalled == MOST_THREADS:
                return
            thread = threading.Thread(target=self._run, name="chameleon-loader", daemon=True)
            self._threads[thread] = None
        thread.start()

    def _is_stalled(self, since_s: float | None) -> bool:
        return since_s is not None and stopwatch_s() - since_s > self._stall_s

    def _run(self) -> None:
        self._prepare_thread()
        while (order := self._next_order()) is not None:
            if order.is_cancelled:
                continue
            self._mark(stopwatch_s())
            delivery = self._attempt(order)
            if isinstance(delivery.outcome, ReadAdapter):
                self._to_keep.append(delivery.outcome)
            self._deliver(delivery)
            if self._is_one_too_many():
                return

    def _mark(self, since_s: float | None) -> None:
        me = threading.current_thread()
        with self._lock:
            if me in self._threads:  # closed meanwhile, it is struck off already
                self._threads[me] = since_s

    def _is_one_too_many(self) -> bool:
        """Whether another thread is there for what comes; this one is struck off then."""
        me = threading.current_thread()
        with self._lock:
            others = [since_s for thread, since_s in self._threads.items() if thread is not me]
            if all(map(self._is_stalled, others)):
                self._threads[me] = None
                return False
            self._threads.pop(me, None)  # closed meanwhile, it is struck off already
            return True

    def _next_order(self) -> LoadOrder | None:
        """The next load; while none is due, what was read is kept for later."""
        while self._orders.empty():
            try:
                kept = self._to_keep.popleft()
            except IndexError:  # another thread may have taken the last one
                break
            self._mark(stopwatch_s())
            self._reader.keep(kept)
            self._mark(None)
        return self._orders.get()

    def _attempt(self, order: LoadOrder) -> Delivery:
        start = stopwatch_s()
        outcome: ReadAdapter | LoadFailed
        try:
            outcome = self._reader.read(order.command)
        except Exception as error:  # noqa: BLE001  # whatever a file can cause becomes an answer
            outcome = failure_of(order.command, error)
        return Delivery(order, outcome, stopwatch_s() - start)


def failure_of(command: LoadAdapter, error: Exception) -> LoadFailed:
    """Why there is no adapter, in one line a user understands, and whose fault that is."""
    text = STAGED.sub("", _in_words(error))
    folder = Path(command.path).expanduser().absolute()
    text = text.replace(str(folder), folder.name or str(folder))  # vLLM tells no client a path
    for name in (Path(command.path).name, command.name):
        text = text.removeprefix(f"adapter {name!r}: ")
    if len(text) > _REASON_CHARACTERS:
        text = text[:_REASON_CHARACTERS] + " ..."
    reason = f"Adapter {command.name!r} cannot be loaded: {text}"
    return LoadFailed(command.adapter_id, reason, _fault_of(command, error))


def _fault_of(command: LoadAdapter, error: Exception) -> Fault:
    if _is_of_machine(error) or not isinstance(error, AdapterError):
        return Fault.SERVER
    is_of_content = isinstance(error, AdapterUnfitError) and command.fingerprint is not None
    return Fault.CONTENT if is_of_content else Fault.FILES


def _is_of_machine(error: Exception) -> bool:
    """Whether a disk or memory may have failed: RuntimeErrors are torch's, as for want of memory."""
    kinds = (OSError, MemoryError, RuntimeError, AdapterUnreadableError)
    cause = error.__cause__
    if isinstance(error, AdapterInvalidError) and isinstance(cause, FileNotFoundError):
        return False  # a file that is gone is the adapter's
    return isinstance(error, kinds) or isinstance(cause, OSError) or "os error" in str(error)


def _in_words(error: Exception) -> str:
    """One line; what vLLM stumbled over, it tells by the type of its error alone."""
    text = " ".join(str(error).split()) or type(error).__name__
    absent = getattr(error.__cause__, "filename", None)
    if isinstance(error, AdapterError):  # our own words name the file and the way out
        return text
    if absent is not None:  # vLLM says that an adapter was not found, but not which file is missing
        return f"there is no {absent}"
    if isinstance(error, StopIteration):
        return "it has no LoRA weights"
    return (
        f"its adapter_config.json or weights lack {text}" if isinstance(error, KeyError) else text
    )


class VllmReader:
    """Reads with vLLM's own code the first time, from a packed copy on disk later.

    That code sees a private copy of the files, never the files themselves (`sealed_copy`).

    vLLM's load and merge only read the manager, so the thread may use them beside running steps.
    """

    def __init__(
        self,
        worker_manager: Any,
        disk_cache: DiskCache | None,
        *,
        serves_partial: bool = False,
        converts_bin: bool = False,
    ) -> None:
        self._worker_manager = worker_manager
        self._serves_partial = serves_partial
        self._disk_cache = disk_cache
        self._limits = AdapterLimits(max_bytes=largest_bytes(), converts_bin=converts_bin)
        self._geometries: dict[tuple[Piece, ...], tuple[Piece, ...]] = {}

    def read(self, command: LoadAdapter) -> ReadAdapter:
        """The adapter, from the packed copy of that very content if there is one."""
        if self._disk_cache is not None and command.fingerprint is not None:
            packed = self._disk_cache.load(command.adapter_id, command.fingerprint)
            if packed is not None:
                return ReadAdapter(packed, command.fingerprint)
        return self.read_files(command)

    def read_files(self, command: LoadAdapter) -> ReadAdapter:
        """The adapter from its own files; safe on any thread."""
        from vllm.lora.request import LoRARequest

        fused = {"is_3d_lora_weight": True} if command.is_3d else {}
        folder = resolved(command.path, command.name)
        with sealed_copy(folder, command.fingerprint, self._limits) as copy:
            request = LoRARequest(command.name, command.adapter_id, str(copy.folder), **fused)
            try:
                host_copy = self._host_copy(request)
            except Exception as error:
                is_size = "embedding LoRA size" in str(error)  # a vocabulary's; vLLM's RuntimeError
                if isinstance(error, AdapterError) or (_is_of_machine(error) and not is_size):
                    raise
                why = why_unknown(self._worker_manager._adapter_manager, copy.modules, str(error))
                raise AdapterUnfitError(why or f"{_in_words(error)}; {WAY_OUT}") from error
        return ReadAdapter(self._with_shared_geometry(host_copy), copy.fingerprint)

    def _host_copy(self, request: Any) -> HostCopy:
        """What vLLM and `pack` make of a folder that cannot change."""
        lora_model = self._worker_manager._load_adapter(request)
        adapter_manager = self._worker_manager._adapter_manager
        require_fit(
            adapter_manager, lora_model, request.lora_name, serves_partial=self._serves_partial
        )
        adapter_manager._create_merged_loras_inplace(lora_model)
        host_copy = pack(adapter_manager, lora_model)
        if isinstance(host_copy, StockCopy) and is_paged(adapter_manager):
            raise AdapterUnfitError(only_in_slots(adapter_manager, lora_model))
        return host_copy

    def keep(self, read: ReadAdapter) -> None:
        """Writes the packed adapter to disk, once per content of the adapter."""
        if self._disk_cache is not None and isinstance(read.host_copy, PackedAdapter):
            self._disk_cache.save(read.host_copy, read.fingerprint)

    def close(self) -> None:
        """Gives the disk space of the packed copies back; nothing may be read afterwards."""
        if self._disk_cache is not None:
            self._disk_cache.close()
            self._disk_cache = None

    def _with_shared_geometry(self, host_copy: HostCopy) -> HostCopy:
        if not isinstance(host_copy, PackedAdapter):
            return host_copy
        if len(self._geometries) >= MOST_GEOMETRIES:
            self._geometries.clear()  # some views are made again; nothing else hangs on sameness
        pieces = self._geometries.setdefault(host_copy.pieces, host_copy.pieces)
        return PackedAdapter(
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
