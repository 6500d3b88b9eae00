"""What the engine process understands beyond vLLM.

Adapters announced, withdrawn and pinned by name, or by the clients' ids as vLLM has it, and questions
about its state. And it wakes by
itself for what its scheduler has to do while there is no request.
"""

import queue
import time
from collections.abc import Callable
from concurrent.futures import Future
from functools import partial
from typing import Any

import msgspec

from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.core.requested_version import KEYED_BY, add_adapter
from chameleon_lora.engine_vllm.core.state import metrics_of, state_of
from chameleon_lora.engine_vllm.lora_backend import backend_of
from chameleon_lora.engine_vllm.messages import Announcement
from chameleon_lora.engine_vllm.sources import servable_limits
from chameleon_lora.policy.plan import Failure


def adding(stock: Callable[..., Any]) -> Callable[..., Any]:
    """EngineCore.add_lora that checks an adapter and lists it; it is read when it is asked for."""

    def add_lora(engine: Any, lora_request: Any) -> Any:
        driver = _adapters_of(engine)
        if driver is None:
            return stock(engine, lora_request)
        add_adapter(driver, lora_request, servable_limits(engine.vllm_config))
        return True

    return add_lora


def removing(stock: Callable[..., Any]) -> Callable[..., Any]:
    """EngineCore.remove_lora by the id that a client gave."""

    def remove_lora(engine: Any, lora_id: int) -> Any:
        driver = _adapters_of(engine)
        return stock(engine, lora_id) if driver is None else driver.remove(lora_id)

    return remove_lora


def listing(stock: Callable[..., Any]) -> Callable[..., Any]:
    """EngineCore.list_loras by the ids that clients gave, wherever their adapters are."""

    def list_loras(engine: Any) -> Any:
        driver = _adapters_of(engine)
        return stock(engine) if driver is None else set(driver.client_ids)

    return list_loras


def pinning(stock: Callable[..., Any]) -> Callable[..., Any]:
    """EngineCore.pin_lora by the id that a client gave; ValueError, as vLLM's, where that cannot be."""

    def pin_lora(engine: Any, lora_id: int) -> Any:
        driver = _adapters_of(engine)
        if driver is None:
            return stock(engine, lora_id)
        reason = driver.pin_id(lora_id)
        if reason is not None:
            raise ValueError(reason)
        return True

    return pin_lora


def keying(stock: Callable[..., Any]) -> Callable[..., Any]:
    """EngineCore.preprocess_add_request that keys a request's blocks by its adapter's inner name.

    In the thread that takes requests in: between two steps they would all be keyed a second time.
    """

    def preprocess_add_request(engine: Any, request: Any) -> Any:
        adapter, driver = request.lora_request, driver_of(engine)
        if driver is None or adapter is None:
            return stock(engine, request)
        version = driver.versions.current(adapter.lora_name)
        if version is None:
            return stock(engine, request)
        request.lora_request = msgspec.structs.replace(adapter, lora_name=version.inner_name)
        made = stock(engine, request)
        made[0].lora_request = adapter
        setattr(made[0], KEYED_BY, version.inner_name)
        return made

    return preprocess_add_request


def waking(stock: Callable[..., None]) -> Callable[..., None]:
    """EngineCoreProc._process_input_queue: an idle engine also wakes when its scheduler has work."""

    def process_input_queue(engine: Any) -> None:
        inputs = engine.input_queue
        if "get" not in vars(inputs) and driver_of(engine) is not None:
            inputs.get = partial(_next_input, engine, inputs.get)
        stock(engine)

    return process_input_queue


def announce(engine: Any, sources: list[Any]) -> int:
    """Each source is an Announcement as a mapping; answers how many were taken."""
    driver = driver_of(engine)
    if driver is None:
        return 0
    driver.has_api_server = True
    for source in msgspec.convert(sources, list[Announcement]):
        driver.announce(source)
    return len(sources)


def try_out(engine: Any, source: Any) -> "Future[tuple[str, str] | None]":
    """Announce what the mapping says once it has been read; what the name meant stays until then.

    Answered when that is known: None, or why it cannot be read and the value of its Fault.
    """
    answer: Future[tuple[str, str] | None] = Future()
    driver = driver_of(engine)
    if driver is None:
        answer.set_result(None)
        return answer
    driver.has_api_server = True
    driver.tick(time.monotonic())  # noqa: TID251  # the driver's clock

    def tell(trial: "Future[Failure | None]") -> None:
        failure = trial.result()
        answer.set_result(None if failure is None else (failure.reason, failure.fault.value))

    driver.try_out(msgspec.convert(source, Announcement)).add_done_callback(tell)
    return answer


def withdraw(engine: Any, names: list[Any]) -> int:
    """Answers how many of the names were known."""
    driver = driver_of(engine)
    return 0 if driver is None else sum(driver.withdraw(name) for name in names)


def pin(engine: Any, name: str, is_pinned: bool) -> str | None:
    """None if it was done, else the reason why not."""
    driver = driver_of(engine)
    return "this engine has no adapters" if driver is None else driver.pin(name, is_pinned)


def state(engine: Any) -> dict[str, Any] | None:
    """The page that explains waits; None for another engine."""
    driver = driver_of(engine)
    if driver is None:
        return None
    backend = backend_of(engine.vllm_config, driver.serving.lora_backend)
    return {**state_of(driver), "lora_backend": {"kind": backend.kind.value, "why": backend.reason}}


def metrics(engine: Any) -> dict[str, Any] | None:
    """The numbers of the metrics page; None for another engine."""
    driver = driver_of(engine)
    return None if driver is None else metrics_of(driver)


def arrivals(engine: Any, number: int) -> dict[str, Any] | None:
    """The requests counted after the `number`-th; None for another engine."""
    driver = driver_of(engine)
    return None if driver is None else driver.arrivals.after(number)


def driver_of(engine: Any) -> Driver | None:
    """The driver of a Chameleon engine, None for another engine."""
    return getattr(engine.scheduler, "chameleon", None)


def _adapters_of(engine: Any) -> Driver | None:
    """The driver of a Chameleon engine that serves adapters; vLLM's own words are for all others."""
    return driver_of(engine) if engine.scheduler.lora_config else None


def _next_input(
    engine: Any, get: Callable[..., Any], block: bool = True, timeout: float | None = None
) -> Any:
    """The next input of the engine's queue, or a wake-up when a step is due before one comes.

    An engine that sleeps or is paused is not woken, nor one that is to end: vLLM asks then no more.
    """
    from vllm.v1.engine import EngineCoreRequestType

    scheduler = engine.scheduler
    idle_s = None
    if block and timeout is None and not engine.is_sleeping():
        idle_s = scheduler.chameleon.idle_s(time.monotonic())  # noqa: TID251  # the driver's clock
    try:
        return get(block, timeout if idle_s is None else idle_s)
    except queue.Empty:
        if idle_s is None:
            raise
    scheduler.chameleon_is_due = True
    return EngineCoreRequestType.WAKEUP, None
