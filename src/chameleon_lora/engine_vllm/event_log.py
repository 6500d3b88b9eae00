"""The file of the step log: one JSON line at a time, from all of an engine's processes.

With CHAMELEON_STEPS=<file> set, the engine process writes what its steps do (`measure.step_log`). What
acknowledgements do not tell goes there from here: loads and activations in stock vLLM's workers, and how
long each request of Chameleon's waited for its adapter.
"""

import functools
import json
import os
import time
from collections.abc import Callable
from typing import Any, Literal

STEPS_VARIABLE = "CHAMELEON_STEPS"
Event = Literal["disk_load", "activate", "adapter_wait"]


def stopwatch_s() -> float:
    """Seconds since some fixed moment, for measuring what a load or an activation took."""
    return time.perf_counter()  # noqa: TID251  # the worker's one clock


class EventLog:
    """An append-only file of lines that several processes and threads may share."""

    def __init__(self, path: str) -> None:
        self._descriptor = os.open(path, os.O_APPEND | os.O_CREAT | os.O_WRONLY, 0o644)

    def write(self, line: dict[str, Any]) -> None:
        """In one system call, so that lines of several processes never mix."""
        os.write(self._descriptor, f"{json.dumps(line)}\n".encode())  # one write: none interleave

    def record(
        self,
        event: Event,
        adapter_id: int,
        seconds: float,
        *,
        in_step: bool,
        source: str | None = None,
    ) -> None:
        """Appends an event.

        `in_step` says that a step, so every running request, waited for it; `source`, where an
        adapter was when its request needed it.
        """
        fields = {
            "event": event,
            "seconds": round(seconds, 6),
            "in_step": in_step,
            "adapter_id": adapter_id,
            **({"source": source} if source else {}),
            "t": time.time(),  # noqa: TID251  # to be matched with the steps of another process
        }
        self.write({"event": fields})

    def close(self) -> None:
        """Afterwards nothing may be recorded."""
        os.close(self._descriptor)


def event_log() -> EventLog | None:
    """The log this process was asked to keep, or None."""
    path = os.environ.get(STEPS_VARIABLE)
    return EventLog(path) if path else None


def watch_stock(worker_manager: Any, log: EventLog) -> None:
    """Afterwards this vLLM LRUCacheWorkerLoRAManager reports its loads and activations.

    Warm-up dummies are left out: they never pass _load_adapter.
    """
    _StockWatch(worker_manager, log)


class _StockWatch:
    """Sits in front of four methods of one manager, whose attributes keep it alive."""

    def __init__(self, worker_manager: Any, log: EventLog) -> None:
        self._log = log
        self._in_step = False
        self._loaded: set[int] = set()
        self._load = worker_manager._load_adapter
        self._apply = worker_manager._apply_adapters
        worker_manager._load_adapter = self._timed_load
        worker_manager._apply_adapters = self._marked_apply
        create = worker_manager.create_lora_manager

        @functools.wraps(create)
        def create_and_watch(*args: Any, **kwargs: Any) -> Any:
            model = create(*args, **kwargs)
            self._watch_activations(worker_manager._adapter_manager)
            return model

        worker_manager.create_lora_manager = create_and_watch

    def _marked_apply(self, requests: Any) -> None:
        self._in_step = True
        try:
            self._apply(requests)
        finally:
            self._in_step = False

    def _timed_load(self, request: Any) -> Any:
        start = stopwatch_s()
        model = self._load(request)
        seconds = stopwatch_s() - start
        self._loaded.add(request.lora_int_id)
        self._log.record("disk_load", request.lora_int_id, seconds, in_step=self._in_step)
        return model

    def _watch_activations(self, adapter_manager: Any) -> None:
        activate: Callable[[int], bool] = adapter_manager.activate_adapter

        @functools.wraps(activate)
        def timed_activate(adapter_id: int) -> bool:
            start = stopwatch_s()
            changed = activate(adapter_id)
            if changed and adapter_id in self._loaded:
                seconds = stopwatch_s() - start
                self._log.record("activate", adapter_id, seconds, in_step=self._in_step)
            return changed

        adapter_manager.activate_adapter = timed_activate
