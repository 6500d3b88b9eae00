"""Reads adapters in a process of its own, so that no step waits for the interpreter meanwhile.

A load is some ten milliseconds of Python, most of it vLLM's own. A thread that does that takes the
interpreter from a running step at each of its products. A process forked from the worker knows the
model's layers as the worker does, and reads with the same code; what it read lies in memory that both map.
"""

import contextlib
import errno
import itertools
import logging
import os
import select
import signal
import socket
import threading
import warnings
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from multiprocessing.reduction import ForkingPickler
from typing import NoReturn

import torch

from chameleon_lora.engine_vllm.messages import LoadAdapter, LoadFailed
from chameleon_lora.engine_vllm.worker.loader import (
    MOST_GEOMETRIES,
    STALL_S,
    Delivery,
    Loader,
    LoadOrder,
    ReadAdapter,
    Reader,
    failure_of,
)
from chameleon_lora.engine_vllm.worker.packed_adapter import PackedAdapter, Piece, packed_over
from chameleon_lora.policy.plan import Fault

with contextlib.suppress(ImportError):  # vLLM brings it along
    import setproctitle

TITLE = "VLLM::Loader"
_NICENESS = 5  # behind the steps and the API server, and not behind everybody
_MOST_BYTES = 1 << 16  # of a message
_ENDED_BY_PARENT = (
    signal.SIGINT,
    signal.SIGHUP,
    signal.SIGTERM,
)  # for all: it ends with the worker
_logger = logging.getLogger(f"vllm.{__name__}")


@dataclass(frozen=True, slots=True)
class _Sent:
    """A packed adapter without its bytes: those lie in the memory that comes along, then its pieces."""

    rank: int
    dtype: torch.dtype
    nbytes: int
    geometry: int
    pieces_bytes: int
    fingerprint: str


@dataclass(frozen=True, slots=True)
class _SharedRead(ReadAdapter):
    """What was read, in memory that another process can map by this descriptor."""

    descriptor: int


class LoaderProcess:
    """A Loader in a process forked from this one, for readers that give packed adapters only.

    If that process ends, what it was asked for has failed, and the next load starts another. Used by one
    thread.
    """

    def __init__(
        self,
        make_reader: Callable[[], Reader],
        prepare_thread: Callable[[], None] = lambda: None,
        stall_s: float = STALL_S,
    ) -> None:
        """Starts the process.

        Args:
            make_reader: called there.
            prepare_thread: called by its threads, first of all.
            stall_s: the Loader's.
        """
        self._make_reader = make_reader
        self._prepare_thread = prepare_thread
        self._stall_s = stall_s
        self._serials = itertools.count()
        self._orders: dict[int, LoadOrder] = {}  # by serial, until delivered or cancelled
        self._geometries: dict[int, tuple[Piece, ...]] = {}  # of this process, by its numbers
        self._socket: socket.socket | None = None
        self._unsent: deque[bytes] = deque()
        self._lost: list[Delivery] = []
        self._start()

    def submit(self, command: LoadAdapter) -> LoadOrder:
        """Queues a load; its delivery names the order."""
        order, serial = LoadOrder(command), next(self._serials)
        message = (serial, command)
        if self._tell(message) or (self._try_start() and self._tell(message)):
            self._orders[serial] = order
        else:
            self._lost.append(_lost(order))
        return order

    def cancel(self, order: LoadOrder) -> None:
        """The load is skipped if it has not begun, and is not delivered."""
        order.is_cancelled = True
        for serial in [serial for serial, known in self._orders.items() if known is order]:
            del self._orders[serial]
            self._tell(serial)

    def poll(self) -> list[Delivery]:
        """What was finished since the last call; never waits."""
        deliveries = []
        self._send()
        while self._orders and self._socket is not None:
            try:
                message, descriptors, _, _ = socket.recv_fds(self._socket, _MOST_BYTES, 1)
            except BlockingIOError:
                break
            except ConnectionError:
                message, descriptors = b"", []
            if message:
                deliveries += self._received(message, descriptors)
            else:
                self._end()
        deliveries += self._lost
        self._lost = []
        return deliveries

    def close(self) -> None:
        """Ends the process, whatever its loads wait for."""
        self._orders.clear()
        self._end()
        self._lost = []

    def _try_start(self) -> bool:
        try:
            self._start()
        except OSError as error:
            _logger.error("No process can be started that reads adapters: %s", error)
            return False
        return True

    def _start(self) -> None:
        ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_SEQPACKET)
        with ours, theirs, warnings.catch_warnings():
            warnings.simplefilter("ignore")  # the child leaves other threads' locks alone
            self._pid = os.fork()
            if self._pid == 0:
                ours.close()
                _serve(theirs, self._make_reader, self._prepare_thread, self._stall_s)
            self._socket = ours.dup()
        self._socket.setblocking(False)  # `recv_fds` takes no notice of flags
        self._geometries.clear()

    def _end(self) -> None:
        """Afterwards there is no process, and what it was asked for has failed."""
        self._unsent.clear()
        if self._socket is None:
            return
        self._socket.close()
        self._socket = None
        with contextlib.suppress(ProcessLookupError):
            os.kill(self._pid, signal.SIGKILL)  # it may hang in a read
        with contextlib.suppress(ChildProcessError):
            os.waitpid(self._pid, 0)
        self._lost += map(_lost, self._orders.values())
        self._orders.clear()

    def _tell(self, message: tuple[int, LoadAdapter] | int) -> bool:
        """Whether the process heard it, or will."""
        self._unsent.append(bytes(ForkingPickler.dumps(message)))
        return self._send()

    def _send(self) -> bool:
        """Whether there is a process; afterwards it was sent all that it has room for."""
        if self._socket is None:
            self._unsent.clear()
            return False
        try:
            while self._unsent:
                self._socket.send(self._unsent[0])
                self._unsent.popleft()
        except BlockingIOError:
            pass
        except ConnectionError:
            self._end()
            return False
        return True

    def _received(self, message: bytes, descriptors: list[int]) -> list[Delivery]:
        try:
            serial, outcome, seconds = ForkingPickler.loads(message)
            order = self._orders.pop(serial, None)
            if order is None:  # cancelled
                return []
            if isinstance(outcome, _Sent):
                outcome = self._try_map(order.command, outcome, descriptors)
            return [Delivery(order, outcome, seconds)]
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _try_map(
        self, command: LoadAdapter, sent: _Sent, descriptors: list[int]
    ) -> ReadAdapter | LoadFailed:
        try:
            if not descriptors:  # the kernel leaves out what there is no number for
                raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))
            return self._mapped(command.adapter_id, sent, descriptors[0])
        except (OSError, MemoryError, RuntimeError) as error:  # the last is torch's
            return failure_of(command, error)

    def _mapped(self, adapter_id: int, sent: _Sent, descriptor: int) -> ReadAdapter:
        pieces = self._geometries.get(sent.geometry)
        if pieces is None:
            if len(self._geometries) >= MOST_GEOMETRIES:
                self._geometries.clear()  # they come with each adapter
            raw = os.pread(descriptor, sent.pieces_bytes, sent.nbytes)
            pieces = self._geometries[sent.geometry] = ForkingPickler.loads(raw)
        os.ftruncate(descriptor, sent.nbytes)
        flat = _mapping(descriptor, sent.nbytes)
        packed = packed_over(flat, adapter_id, sent.rank, sent.dtype, pieces)
        return ReadAdapter(packed, sent.fingerprint)


def _lost(order: LoadOrder) -> Delivery:
    command = order.command
    _logger.error("The process that reads adapters ended before it had read %r.", command.name)
    reason = f"Adapter {command.name!r} cannot be loaded: the process that reads adapters ended"
    return Delivery(order, LoadFailed(command.adapter_id, reason, Fault.SERVER), 0.0)


def _serve(
    ours: socket.socket,
    make_reader: Callable[[], Reader],
    prepare_thread: Callable[[], None],
    stall_s: float,
) -> NoReturn:
    """What the forked process does, until the worker is gone."""
    try:
        for number in _ENDED_BY_PARENT:
            signal.signal(number, signal.SIG_IGN)
        os.nice(_NICENESS)
        with contextlib.suppress(NameError):
            setproctitle.setproctitle(TITLE)
        _obey(ours, make_reader, prepare_thread, stall_s)
    except BaseException:
        _logger.exception("The process that reads adapters failed")
    finally:
        os._exit(0)  # all else that this process has is the worker's


def _obey(
    ours: socket.socket,
    make_reader: Callable[[], Reader],
    prepare_thread: Callable[[], None],
    stall_s: float,
) -> None:
    server = _Server(ours)
    loader = Loader(_SharingReader(make_reader()), prepare_thread, stall_s, server.deliver)
    poller = select.poll()
    poller.register(ours, select.POLLIN)
    while True:
        poller.poll(1000 * stall_s if server.serials else None)
        loader.poll()  # a load that hangs holds up no other
        try:
            raw = ours.recv(_MOST_BYTES, socket.MSG_DONTWAIT)
        except BlockingIOError:
            continue
        if not raw:
            return
        message = ForkingPickler.loads(raw)
        if isinstance(message, int):
            server.cancel(message)
        else:
            server.submit(loader, *message)


class _Server:
    """Which loads the worker waits for, and what they are called there."""

    def __init__(self, ours: socket.socket) -> None:
        self._socket = ours
        self._lock = threading.Lock()
        self.serials: dict[LoadOrder, int] = {}
        self._geometries: dict[tuple[Piece, ...], int] = {}
        self._numbers = itertools.count()

    def submit(self, loader: Loader, serial: int, command: LoadAdapter) -> None:
        """Queues a load."""
        with self._lock:  # or it might be delivered before its serial is known
            self.serials[loader.submit(command)] = serial

    def cancel(self, serial: int) -> None:
        """The load is skipped if it has not begun, and is not delivered."""
        with self._lock:
            for order in [order for order, known in self.serials.items() if known == serial]:
                order.is_cancelled = True
                del self.serials[order]

    def deliver(self, delivery: Delivery) -> None:
        """Tells the worker."""
        outcome = delivery.outcome
        descriptors = [outcome.descriptor] if isinstance(outcome, _SharedRead) else []
        try:
            with self._lock:
                serial = self.serials.pop(delivery.order, None)
                if serial is None:
                    return
                said = self._described(outcome) if isinstance(outcome, _SharedRead) else outcome
                message = ForkingPickler.dumps((serial, said, delivery.seconds))
                socket.send_fds(self._socket, [message], descriptors)
        except ConnectionError:  # the worker is gone, and this process ends
            pass
        finally:
            for descriptor in descriptors:
                os.close(descriptor)

    def _described(self, read: _SharedRead) -> _Sent:
        packed = read.host_copy
        assert isinstance(packed, PackedAdapter), "another kind is used from slots only"
        if len(self._geometries) >= MOST_GEOMETRIES:
            self._geometries.clear()  # they get new numbers
        if packed.pieces not in self._geometries:
            self._geometries[packed.pieces] = next(self._numbers)
        number, raw = self._geometries[packed.pieces], bytes(ForkingPickler.dumps(packed.pieces))
        os.pwrite(read.descriptor, raw, packed.nbytes)
        return _Sent(packed.rank, packed.dtype, packed.nbytes, number, len(raw), read.fingerprint)


class _SharingReader:
    """Another reader, whose adapters are copied into memory that the worker can map."""

    def __init__(self, reader: Reader) -> None:
        self._reader = reader

    def read(self, command: LoadAdapter) -> ReadAdapter:
        """The adapter; raises whatever went wrong."""
        read = self._reader.read(command)
        packed = read.host_copy
        assert isinstance(packed, PackedAdapter), "another kind is used from slots only"
        descriptor = os.memfd_create(f"adapter-{command.adapter_id}")
        try:
            flat = _mapping(descriptor, packed.nbytes)
            flat.copy_(packed.flat)
        except BaseException:
            os.close(descriptor)
            raise
        shared = packed_over(flat, packed.adapter_id, packed.rank, packed.dtype, packed.pieces)
        return _SharedRead(shared, read.fingerprint, descriptor)

    def keep(self, read: ReadAdapter) -> None:
        """Called after delivery, to make the next read of this adapter cheaper."""
        self._reader.keep(read)


def _mapping(descriptor: int, nbytes: int) -> torch.Tensor:
    """A file's first bytes, which are as many at least afterwards; it holds no descriptor."""
    path = f"/proc/self/fd/{descriptor}"
    return torch.from_file(path, shared=True, size=nbytes, dtype=torch.uint8)
