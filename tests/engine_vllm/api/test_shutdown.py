"""How a server ends: what its engine's client does when it is told to, and when the engine is gone."""

import asyncio
import logging
import socket
import subprocess
import sys
import weakref
from contextlib import nullcontext
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.api.shutdown import (
    ENGINE_S,
    LIMIT,
    POLL_S,
    checking_health,
    ending,
    is_shutting_down,
    limiting,
    reading,
)
from chameleon_lora.engine_vllm.errors import is_ours_error
from chameleon_lora.errors import EngineGoneError
from tests.engine_vllm.fake_requests import core_request

uvicorn = pytest.importorskip("uvicorn")


class DeadError(Exception):
    """What vLLM raises for an engine that is gone."""


@dataclass
class EndingEngine:
    """What of vLLM's AsyncLLM takes part in its end."""

    scheduler: str = SCHEDULER
    is_dead: bool = False
    left_over: int | None = None
    unfinished: int = 0
    calls: list[str] = field(default_factory=list)
    dead_error: Exception = field(default_factory=DeadError)

    def __post_init__(self) -> None:
        scheduler = SimpleNamespace(scheduler_cls=self.scheduler)
        self.vllm_config = SimpleNamespace(scheduler_config=scheduler)
        self.engine_core = SimpleNamespace(resources=SimpleNamespace(engine_dead=self.is_dead))
        self.output_handler: Any = None
        self.output_processor = self

    @property
    def errored(self) -> bool:
        """As vLLM tells it."""
        has_stopped = self.output_handler is not None and self.output_handler.done()
        return self.engine_core.resources.engine_dead or has_stopped

    def get_num_unfinished_requests(self) -> int:
        """One fewer each time somebody looks."""
        self.unfinished = max(0, self.unfinished - 1)
        return self.unfinished

    def stock_shutdown(self, timeout: float | None = None) -> None:
        """vLLM's own: afterwards the engine is gone."""
        self.calls.append(f"shutdown {timeout}")
        self.left_over = self.unfinished
        self.engine_core.resources.engine_dead = True

    async def stock_check_health(self) -> None:
        """vLLM's own, of an engine that is well."""
        self.calls.append("health")


shutdown = ending(EndingEngine.stock_shutdown)
check_health = checking_health(EndingEngine.stock_check_health)


def test_an_engine_that_died_ends_its_server_with_an_error() -> None:
    """After vLLM's own clean-up, and once only."""
    engine = EndingEngine(is_dead=True)
    with pytest.raises(EngineGoneError, match="The engine has ended by itself"):
        shutdown(engine, timeout=3)
    shutdown(engine)
    assert ["shutdown 3", "shutdown None"] == engine.calls


def test_an_engine_whose_outputs_are_read_no_more_ends_its_server_with_an_error() -> None:
    """Whatever the reading stumbled over: no request has an answer any more."""
    engine = EndingEngine()

    async def stumble() -> None:
        raise OSError

    async def main() -> None:
        engine.output_handler = asyncio.ensure_future(stumble())
        await asyncio.wait([engine.output_handler])

    asyncio.run(main())
    with pytest.raises(EngineGoneError):
        shutdown(engine, timeout=3)


@pytest.mark.parametrize("is_dead", [False, True])
def test_a_reader_that_ended_with_its_loop_has_not_failed(is_dead: bool) -> None:
    """After asyncio.run a script may end its engine; one that died before is told as ever."""
    engine = EndingEngine(is_dead=is_dead, unfinished=3)

    async def main() -> None:
        engine.output_handler = asyncio.ensure_future(asyncio.sleep(3600))
        await asyncio.wait([engine.output_handler], timeout=0)

    asyncio.run(main())
    with pytest.raises(EngineGoneError) if is_dead else nullcontext():
        shutdown(engine, timeout=30)
    assert 3 == engine.left_over  # nobody can read what is unfinished


def test_a_server_that_is_told_to_end_does_so_without_an_error() -> None:
    """Though the second call finds an engine that is gone."""
    engine = EndingEngine()
    shutdown(engine, timeout=30)
    shutdown(engine, timeout=30)
    assert is_shutting_down(engine)


def test_requests_in_flight_end_before_the_engine_does() -> None:
    """For as long as it was told; without a time, or with a dead engine, nobody waits."""
    patient, hasty, dead = (
        EndingEngine(unfinished=3),
        EndingEngine(unfinished=3),
        EndingEngine("x", is_dead=True),
    )
    shutdown(patient, timeout=30)
    shutdown(hasty, timeout=0)
    shutdown(dead, timeout=30)
    assert (0, 3) == (patient.left_over, hasty.left_over)


def test_an_engine_does_not_get_the_streams_time_once_more() -> None:
    """What is left of it, so that whoever is not done is told before the process ends by force."""
    late, early = EndingEngine(unfinished=10**9), EndingEngine(unfinished=3)
    shutdown(late, timeout=2 * POLL_S)
    shutdown(early, timeout=3600)
    assert [f"shutdown {ENGINE_S}"] == late.calls
    assert ENGINE_S < float(early.calls[0].split()[1]) < 3600


def test_the_thread_that_writes_answers_does_not_wait_for_them() -> None:
    """Called in the event loop, it would wait for itself."""
    engine = EndingEngine(unfinished=3)

    async def end() -> None:
        shutdown(engine, timeout=30)

    asyncio.run(end())
    assert 3 == engine.left_over


def test_health_fails_from_then_on() -> None:
    """Whoever balances load sends nothing more; before that vLLM's own answer counts."""
    engine = EndingEngine()
    asyncio.run(check_health(engine))
    assert ["health"] == engine.calls
    shutdown(engine)
    with pytest.raises(DeadError):
        asyncio.run(check_health(engine))


def test_stock_vllm_ends_as_it_always_did() -> None:
    """Nothing is changed for an engine without Chameleon's scheduler."""
    engine = EndingEngine(scheduler="vllm.v1.core.sched.scheduler.Scheduler", is_dead=True)
    shutdown(engine)
    assert not is_shutting_down(engine)
    asyncio.run(check_health(engine))


def test_an_engine_that_never_started_is_not_told_to_have_died() -> None:
    """Its own error is what matters."""
    engine = EndingEngine()
    del engine.engine_core
    with pytest.raises(AttributeError, match="engine_core"):  # of the stock one
        shutdown(engine)
    assert is_shutting_down(engine)


class App:
    """An ASGI app that waits for the whole body, with the state in which limits stand."""

    def __init__(self, limit_s: float | None) -> None:
        self.state = SimpleNamespace(**({} if limit_s is None else {LIMIT: limit_s}))

    async def __call__(self, _scope: Any, receive: Any, _send: Any) -> None:
        """Never answers."""
        while (await receive()).get("more_body"):
            pass


async def end_beside_unfinished_body(limit_s: float) -> bool:
    """A real server is told to end while it waits for a client's body; whether it has ended then."""
    config = uvicorn.Config(App(limit_s), log_level="critical", lifespan="off")
    server = uvicorn.Server(config)
    with socket.create_server(("127.0.0.1", 0)) as listening:
        task = asyncio.create_task(server.serve([listening]))
        reader, writer = await asyncio.open_connection(*listening.getsockname())
        writer.write(
            b"POST / HTTP/1.1\r\nHost: x\r\nContent-Length: 9\r\nExpect: 100-continue\r\n\r\n"
        )
        assert b"100" in await reader.readline()
        server.should_exit = True
        await task
        writer.close()
    return task.done()


@pytest.fixture
def limited(monkeypatch: pytest.MonkeyPatch) -> None:
    """Uvicorn as Chameleon's hook leaves it."""
    monkeypatch.setattr(uvicorn.Config, "__init__", limiting(uvicorn.Config.__init__))


@pytest.mark.slow
@pytest.mark.usefixtures("limited")
def test_a_body_that_never_comes_keeps_no_server() -> None:
    """It is cut off when the time is over, and the server ends."""
    assert asyncio.run(end_beside_unfinished_body(0.0))


@pytest.mark.usefixtures("limited")
def test_only_our_servers_end_in_our_time() -> None:
    """Others keep uvicorn's way, and a time that somebody chose stays."""
    found = [uvicorn.Config(app) for app in (App(30.0), App(None), lambda: None)]
    found.append(uvicorn.Config(App(30.0), timeout_graceful_shutdown=7))
    assert [30.0, None, None, 7] == [config.timeout_graceful_shutdown for config in found]
    engine = EndingEngine()
    shutdown(engine, timeout=0)  # the time is over for those still waiting
    assert [1.0, None, None, 7] == [config.timeout_graceful_shutdown for config in found]


@pytest.mark.slow
def test_a_server_process_ends_though_a_thread_of_it_hangs() -> None:
    """Its last moment comes after the streams' time, with its status; that of others never does."""
    script = (
        "import sys, threading, types, uvicorn\n"
        "from chameleon_lora.engine_vllm.api import shutdown\n"
        "shutdown.LAST_S = 0.1\n"
        "uvicorn.Config.__init__ = shutdown.limiting(uvicorn.Config.__init__)\n"
        "app = types.SimpleNamespace(state=types.SimpleNamespace(chameleon_shutdown_s=0.0))\n"
        "config = uvicorn.Config(app)\n"
        "if sys.argv[1] == 'own': shutdown.own_process()\n"
        "shutdown._servers.end(0.0, status=3)\n"
        "if sys.argv[1] == 'own': threading.Event().wait()\n"
    )
    for whose, status in (("own", 3), ("others", 0)):
        done = subprocess.run([sys.executable, "-c", script, whose], check=False, timeout=120)
        assert status == done.returncode


@pytest.mark.parametrize("before", ["SIG_DFL", "SIG_IGN"])
def test_a_hang_up_ends_a_server_as_sigterm_does(before: str) -> None:
    """Unless it was started to survive it, as by nohup."""
    script = (
        "import os, signal, sys\n"
        "from chameleon_lora.engine_vllm.api.shutdown import own_process\n"
        f"signal.signal(signal.SIGHUP, signal.{before})\n"
        "signal.signal(signal.SIGTERM, lambda *_: sys.exit(7))\n"
        "own_process()\n"
        "os.kill(os.getpid(), signal.SIGHUP)\n"
    )
    done = subprocess.run([sys.executable, "-c", script], check=False, timeout=120)
    assert {"SIG_DFL": 7, "SIG_IGN": 0}[before] == done.returncode


@pytest.mark.vllm
@pytest.mark.parametrize(("is_told", "is_cancelled"), [(True, False), (True, True), (False, False)])
def test_the_reader_of_outputs_ends_in_silence(
    is_told: bool, is_cancelled: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """vLLM's own, whether or not it sees before it is ended that the engine is gone; one that died is told as ever.

    Who still waits for an answer is told in both cases; the log has neither error nor traceback in the first.
    """
    pytest.importorskip("vllm")
    from vllm.v1.engine.core_client import AsyncMPClient
    from vllm.v1.engine.exceptions import EngineDeadError

    monkeypatch.setattr(AsyncMPClient, "get_output_async", reading(AsyncMPClient.get_output_async))
    engine, queue = read_engine()

    async def end() -> None:
        engine._run_output_handler()
        while engine.engine_core.resources.output_queue_task is None:
            await asyncio.sleep(0)
        await asyncio.sleep(0)  # it begins to read
        (ending(end_engine) if is_told else end_engine)(engine, timeout=0)
        if is_cancelled:  # as vLLM does next
            engine.output_handler.cancel()
        await asyncio.wait([engine.output_handler])

    told: list[str] = []
    handler = logging.Handler(logging.ERROR)
    handler.emit = lambda record: told.append(record.getMessage())  # type: ignore[method-assign]  # a list
    logging.getLogger("vllm").addHandler(handler)
    try:
        asyncio.run(asyncio.wait_for(end(), 60))
    finally:
        logging.getLogger("vllm").removeHandler(handler)
        engine.engine_core.resources.ctx.destroy(linger=0)
    assert is_told != bool(told)
    assert is_told == is_ours_error(queue.output) == (not isinstance(queue.output, EngineDeadError))


def end_engine(engine: Any, timeout: float) -> None:
    """The first part of vLLM's own shutdown, after which it ends the reader."""
    engine.engine_core.shutdown(timeout)


def read_engine() -> tuple[Any, Any]:
    """Of vLLM's AsyncLLM and its client what reads outputs, and where request r waits for its own."""
    import zmq.asyncio
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.core_client import AsyncMPClient, BackgroundResources
    from vllm.v1.engine.output_processor import OutputProcessor, RequestOutputCollector

    context = zmq.Context()
    client = AsyncMPClient.__new__(AsyncMPClient)
    client.resources = BackgroundResources(context)
    client.resources.output_socket = zmq.asyncio.Context(context).socket(zmq.PULL)
    client.resources.output_socket.bind("inproc://outputs")
    client._finalizer = weakref.finalize(client, client.resources)
    client.decoder, client.utility_results, client.outputs_queue = None, {}, asyncio.Queue()
    engine = AsyncLLM.__new__(AsyncLLM)
    engine.vllm_config = EndingEngine().vllm_config
    engine.engine_core, engine.output_handler, engine.logger_manager = client, None, None
    engine.log_stats, engine.renderer = False, SimpleNamespace(mm_processor_cache=None)
    engine.shutdown = lambda: None  # when it is collected
    engine.output_processor = OutputProcessor(None, log_stats=False)
    queue = RequestOutputCollector(RequestOutputKind.DELTA, "r")
    params = SamplingParams(detokenize=False)
    engine.output_processor.add_request(core_request("r", [5], params), None, None, 0, queue)
    return engine, queue
