"""What each process of a server does by itself: ends with the one that started it, gives memory back.

vLLM's engine does not look whether its API server still lives: killed, that one leaves it behind with
all memory of the accelerator. And the C library keeps what a crowd needed at its peak.
"""

import contextlib
import ctypes
import logging
import multiprocessing
import os
import signal
import threading
import time
from collections.abc import Callable
from typing import Any

import psutil

from chameleon_lora.engine_vllm.config import is_ours
from chameleon_lora.engine_vllm.log_limit import limit_log_records

LOOK_S = 1.0
LAST_S = 5.0  # for a process to end in order once its parent is gone; then it ends by force
IDLE_S, IDLE_CORE = 10.0, 0.1  # less than such a part of a core for so long
TRIM_EVERY_S = 60.0
_THREAD = "chameleon-process"
_WORKER = "VllmWorker"
_CHILDREN = ("EngineCore", "ApiServer", _WORKER)  # as vLLM names what it starts
_COORDINATOR = "::DPCoordinator"  # what vLLM calls that of data-parallel engines, behind a prefix
_logger = logging.getLogger(f"vllm.{__name__}")


class IdleHeap:
    """When to give free memory back: the process has worked, and has become idle.

    Looked at in turn, with times that only grow.
    """

    def __init__(self, now_s: float, cpu_s: float) -> None:
        self._looked_s, self._cpu_s = now_s, cpu_s
        self._busy_s = now_s
        self._trimmed_s = now_s - TRIM_EVERY_S
        self._has_worked = True

    def is_due(self, now_s: float, cpu_s: float) -> bool:
        """Whether to do it now; asked with what the process has used of the processors so far."""
        if cpu_s - self._cpu_s > IDLE_CORE * (now_s - self._looked_s):
            self._busy_s, self._has_worked = now_s, True
        self._looked_s, self._cpu_s = now_s, cpu_s
        is_idle = now_s - self._busy_s >= IDLE_S
        if not (is_idle and self._has_worked and now_s - self._trimmed_s >= TRIM_EVERY_S):
            return False
        self._trimmed_s, self._has_worked = now_s, False
        return True


def joining(stock: Callable[..., None]) -> Callable[..., None]:
    """Executor.__init__ and Worker.__init__ of an engine of ours: this process is one of a server's.

    They come before the model is loaded, so what holds later holds while a server starts, too.
    """

    def init(part: Any, vllm_config: Any, *args: Any, **kwargs: Any) -> None:
        if is_ours(vllm_config) and is_child():
            _leave_signals_to_server()
            limit_log_records()
            attend(vllm_config)
        stock(part, vllm_config, *args, **kwargs)

    return init


def attend(vllm_config: Any = None) -> None:
    """From now on a thread looks after this process of a server. Idempotent.

    With an engine's configuration that engine waits for no client once its parent is gone.
    """
    if not any(thread.name == _THREAD for thread in threading.enumerate()):
        parent = multiprocessing.parent_process()
        pid = parent.pid if parent is not None and is_child() else None
        coordinators = [] if pid is None else _coordinators(pid)  # now, while the parent lives
        watching = (pid, vllm_config, coordinators)
        threading.Thread(target=_attend, args=watching, name=_THREAD, daemon=True).start()


def _attend(parent: int | None, vllm_config: Any, coordinators: list[psutil.Process]) -> None:
    heap = IdleHeap(time.monotonic(), time.process_time())  # noqa: TID251 - a process's own clocks
    while parent in (None, os.getppid()):
        if heap.is_due(time.monotonic(), time.process_time()):  # noqa: TID251 - likewise
            trim()
        time.sleep(LOOK_S)
    _logger.error("The process %d that started this one is gone, and so this one ends.", parent)
    for coordinator in coordinators:
        with contextlib.suppress(psutil.Error):  # another has ended it
            coordinator.terminate()
    if vllm_config is not None:
        vllm_config.shutdown_timeout = 0
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(LAST_S)
    os._exit(1)


def _coordinators(parent: int) -> list[psutil.Process]:
    """Those that this parent has started, before its other children: nobody but these looks after them."""
    with contextlib.suppress(psutil.Error):  # it is gone already
        children = psutil.Process(parent).children()
        return [child for child in children if _title(child).endswith(_COORDINATOR)]
    return []


def _title(process: psutil.Process) -> str:
    with contextlib.suppress(psutil.Error):
        return " ".join(process.cmdline()).strip()
    return ""


def trim() -> None:
    """Afterwards the C library has given back what it kept for later, where it can."""
    give_back = getattr(ctypes.CDLL(None), "malloc_trim", None)  # of glibc alone
    if give_back is not None:
        give_back(0)


def is_child() -> bool:
    """Whether this process is one that vLLM has started."""
    return multiprocessing.current_process().name.startswith(_CHILDREN)


def _leave_signals_to_server() -> None:
    """What a terminal or a supervisor sends to all processes of a server has no effect in this one.

    The first process lets streams end and then ends the others in order: a worker with its engine, by
    the pipe between them. An engine obeys SIGTERM, by which its server ends it; it finishes its requests.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGHUP, signal.SIG_IGN)
    if multiprocessing.current_process().name.startswith(_WORKER):
        signal.signal(signal.SIGTERM, _do_nothing)  # programs that it starts go on to obey


def _do_nothing(*_: object) -> None:
    """A handler; it is not passed on to programs, as SIG_IGN is."""
