"""How a server ends: told to, its streams end whole; without its engine, it says so and fails.

vLLM's own server answers new requests with nothing while it drains, and exits with status 0 when its
engine has died, which tells whoever watches it that all is well.
"""

import asyncio
import logging
import os
import signal
import sys
import threading
import time
import weakref
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from chameleon_lora.engine_vllm import processes
from chameleon_lora.engine_vllm.config import is_ours
from chameleon_lora.engine_vllm.errors import client_error
from chameleon_lora.errors import EngineGoneError

SHUTTING_DOWN = "chameleon_is_shutting_down"
OUTPUTS = "chameleon_outputs"  # of the client of an engine that is to end: vLLM's OutputProcessor
LIMIT = "chameleon_shutdown_s"  # of an app's state: what --shutdown-timeout says
POLL_S = 0.05
LEAST_S, LAST_S = 1.0, 15.0  # for the last bytes to be written; for the process to end by itself
ENGINE_S = 5.0  # for the engine, whatever is left of the time; vLLM's own least
# For streams in flight after SIGTERM; Kubernetes kills after as long, if not told otherwise.
DRAIN_S = 30
SHUTDOWN_WORDS = "This server is shutting down and takes no new requests; ask again in a moment, or another replica."
GONE_WORDS = (
    "The engine has ended by itself, for the reason above, and the server cannot go on without it. "
    "Requests in flight were told. Start the server again."
)
_logger = logging.getLogger(f"vllm.{__name__}")


class _Servers:
    """The HTTP servers of this process that belong to Chameleon's engines: in fact one.

    Attributes:
        own_process: it does nothing else, and may be ended.
    """

    def __init__(self) -> None:
        self._configs: weakref.WeakSet[Any] = weakref.WeakSet()
        self.own_process = False

    def add(self, config: Any, limit_s: float) -> None:
        """Uvicorn's configuration of one: whoever is not done after so long is cut off when it ends."""
        if config.timeout_graceful_shutdown is None:
            config.timeout_graceful_shutdown = max(LEAST_S, limit_s)
            self._configs.add(config)

    def cut(self, end_s: float) -> None:
        """Nobody is waited for beyond that time, but for a moment to take what was written last."""
        for config in self._configs:
            config.timeout_graceful_shutdown = max(LEAST_S, end_s - _now_s())

    def end(self, end_s: float, status: int) -> None:
        """This process ends soon after that time, also if a thread of it hangs."""
        if self.own_process and self._configs:
            last = threading.Timer(end_s - _now_s() + LAST_S, os._exit, [status])
            last.daemon = True
            last.start()


_servers = _Servers()


def own_process() -> None:
    """This process is a server's, and ends with it."""
    _servers.own_process = True
    _obey_hang_up()


def _obey_hang_up() -> None:
    """SIGHUP ends this process as SIGTERM does, unless it is ignored, as under nohup, or otherwise used."""
    is_main = threading.current_thread() is threading.main_thread()  # others may set no handler
    if is_main and signal.getsignal(signal.SIGHUP) is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, lambda *_: os.kill(os.getpid(), signal.SIGTERM))


def limiting(stock: Callable[..., None]) -> Callable[..., None]:
    """uvicorn.Config.__init__: a server of ours ends in its time, whatever its clients do.

    Uvicorn waits for each request, also for one whose body never comes, unless it is told how long.
    """

    def init(config: Any, app: Any, *args: Any, **kwargs: Any) -> None:
        stock(config, app, *args, **kwargs)
        limit_s = getattr(getattr(app, "state", None), LIMIT, None)
        if limit_s is not None:
            _servers.add(config, limit_s)
            _obey_hang_up()
            processes.attend()

    return init


def is_shutting_down(engine: Any) -> bool:
    """Whether this engine's server was told to end, or has lost it."""
    return bool(getattr(engine, SHUTTING_DOWN, False))


def ending(stock: Callable[..., None]) -> Callable[..., None]:
    """AsyncLLM.shutdown that first lets answers end, and fails if the engine had ended by itself.

    vLLM calls it in a thread of its own when it is told to end, so waiting here stops no stream. The
    engine's own draining is not enough: its last outputs are dropped with the process that reads them.
    """

    is_exiting = (
        sys.is_finalizing
    )  # names of modules are gone by then, and those of a closure are not

    def shutdown(engine: Any, timeout: float | None = None) -> None:
        if (
            is_exiting()
            or not is_ours(getattr(engine, "vllm_config", None))
            or is_shutting_down(engine)
        ):
            stock(engine, timeout=timeout)
            return
        setattr(engine, SHUTTING_DOWN, True)
        if (client := getattr(engine, "engine_core", None)) is not None:
            setattr(client, OUTPUTS, engine.output_processor)
        has_died, end_s = _has_died(engine), _now_s() + (timeout or 0.0)
        _servers.end(end_s, status=int(has_died))
        if timeout and not has_died and not _holds_up_streams():
            _drain(engine, end_s)
            timeout = max(
                ENGINE_S, end_s - _now_s()
            )  # else it would finish requests for as long again
        stock(engine, timeout=timeout)
        _servers.cut(end_s)
        if has_died:
            raise EngineGoneError(GONE_WORDS)

    return shutdown


def _holds_up_streams() -> bool:
    """Whether this is the thread that writes them, as in vLLM 0.26, where they have ended by now."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _drain(engine: Any, end_s: float) -> None:
    """Returns once no request is unfinished, nobody reads their outputs, or the time is over."""
    while _now_s() < end_s and not getattr(engine, "errored", False):
        if not engine.output_processor.get_num_unfinished_requests():
            return
        time.sleep(POLL_S)


def reading(stock: Callable[..., Any]) -> Callable[..., Any]:
    """AsyncMPClient.get_output_async whose reader ends in silence with an engine that was told to end.

    vLLM ends the reader, too, but a moment after what it reads from: if the reader is first to see that the
    engine is gone, it takes it for dead, with a traceback. Who still waits is told in both cases.
    """

    async def get_output_async(client: Any) -> Any:
        from vllm.v1.engine.exceptions import EngineDeadError

        try:
            return await stock(client)
        except (EngineDeadError, asyncio.CancelledError):
            processor = getattr(client, OUTPUTS, None)
            if processor is None:
                raise
            unfinished, status = processor.request_states.values(), HTTPStatus.SERVICE_UNAVAILABLE
            for state in unfinished:
                is_pooling = state.detokenizer is None
                state.queue.put(client_error(SHUTDOWN_WORDS, status, is_pooling=is_pooling))
            if unfinished:
                _logger.info("%d requests did not end in time, and were told so", len(unfinished))
            raise asyncio.CancelledError from None

    return get_output_async


def checking_health(stock: Callable[..., Any]) -> Callable[..., Any]:
    """AsyncLLM.check_health that fails from the word to end on, so that no new requests are sent."""

    async def check_health(engine: Any) -> None:
        if is_shutting_down(engine):
            raise engine.dead_error
        await stock(engine)

    return check_health


def _now_s() -> float:
    return time.monotonic()  # noqa: TID251 - a server's own clock


def _has_died(engine: Any) -> bool:
    """Whether it, or whoever reads its outputs, has ended; False too for one that never started.

    A reader whose loop has ended, as after asyncio.run, is cancelled and has not failed.
    """
    reader = getattr(engine, "output_handler", None)
    if reader is not None and reader.cancelled():
        return bool(engine.engine_core.resources.engine_dead)
    return bool(getattr(engine, "errored", False))
