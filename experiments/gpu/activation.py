"""How long does putting an adapter into a slot hold up a step, by where the adapter was?

The measurements of `experiments/activation.py`, on the served model's shapes: seconds of the call, which the
step's thread spends issuing copies, and seconds until the device has them. A cold adapter is read with
the page cache dropped: by stock inside the step, by Chameleon beside it. Then the profiler counts what
one activation issues; and, as a stage of its own, what of a step's time remains in a wave of requests.
"""

import contextlib
import os
import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile
from vllm import LLM
from vllm.lora.request import LoRARequest
from vllm.v1.worker import lora_model_runner_mixin

from chameleon_lora.adapters.make import DEFAULT_SCALE
from chameleon_lora.engine_vllm.event_log import stopwatch_s
from chameleon_lora.engine_vllm.measure.offline import ENVIRONMENT
from chameleon_lora.engine_vllm.messages import DropAdapter, LoadAdapter, Loaded
from chameleon_lora.engine_vllm.worker.lora_manager import manager_class
from experiments.activation import ADAPTERS, IN_SLOTS, Stage
from experiments.gpu.engines import chameleon_here, mixed_wave, warm_wave
from experiments.gpu.folders import ensure_adapters, ensure_model
from experiments.gpu.jobs import CONTEXT_TOKENS, serving_engine
from experiments.gpu.outcome import StageResults
from experiments.gpu.scale import RunOptions
from experiments.two_servers import drop_page_cache

TURNS = 3
PROFILED = 4
BLOCK_TOKENS = {True: 32, False: 16}  # dry, on a GPU


def time_activations(options: RunOptions, results: StageResults) -> None:
    """Notes medians in milliseconds, by where the adapters come from."""
    rank = options.scale.serving.activation_rank
    folders, llm = _adapters(options, rank), _engine(options, rank)
    stage = Stage(llm, folders)
    results.add(rank=rank, adapter_bytes=stage.nbytes)
    ways: dict[str, tuple[Callable[[], None], Callable[[int], float]]] = {
        "stock, host": (stage.begin_stock, stage.activate_stock),
        "chameleon, host": (stage.begin_host, stage.activate_ours),
        "chameleon, KV blocks": (lambda: stage.begin_pages(is_adjacent=False), stage.activate_ours),
        "chameleon, KV blocks in a row": (
            lambda: stage.begin_pages(is_adjacent=True),
            stage.activate_ours,
        ),
    }
    each = -(-options.scale.serving.activations // TURNS)
    times: dict[str, list[tuple[float, float]]] = {name: [] for name in ways}
    for _ in range(TURNS):
        for name, (begin, activate) in ways.items():
            begin()
            for number in folders:
                timed(activate, number)  # the slot's first tenant costs more
            times[name] += [timed(activate, n % ADAPTERS + 1) for n in range(each)]
    results.add(activations={name: told(found) for name, found in times.items()})
    results.add(cold=_cold(llm, stage, folders))
    results.add(issued={name: _issued(*way) for name, way in ways.items()})
    stage.adapters.close()


def timed(activate: Callable[[int], float], number: int) -> tuple[float, float]:
    """Seconds of the call, and until the device has done it."""
    _finish()
    start_s = stopwatch_s()
    call_s = activate(number)
    _finish()
    return call_s, stopwatch_s() - start_s


def told(times: Sequence[tuple[float, float]]) -> dict[str, float]:
    """Medians and the longest, in milliseconds."""
    calls, wholes = ([1e3 * pair[part] for pair in times] for part in (0, 1))
    return {
        "call_ms": statistics.median(calls),
        "call_max_ms": max(calls),
        "device_ms": statistics.median(wholes),
        "device_max_ms": max(wholes),
        "count": len(times),
    }


def _adapters(options: RunOptions, rank: int) -> dict[int, Path]:
    shape = options.scale.serving.model
    model = ensure_model(options.work, shape, has_weights=False)
    folders = ensure_adapters(
        options.work / f"of-rank-{rank}", model, [rank] * ADAPTERS, shape.dtype, scale=DEFAULT_SCALE
    )
    return dict(enumerate(folders, start=1))


def _engine(options: RunOptions, rank: int) -> Any:
    os.environ.update(ENVIRONMENT)
    lora_model_runner_mixin.LRUCacheWorkerLoRAManager = manager_class()
    model = ensure_model(options.work, options.scale.serving.model, has_weights=False)
    arguments = {
        **serving_engine(options),
        "max_loras": 2,
        "max_cpu_loras": ADAPTERS + 1,
        "max_lora_rank": rank,
        "max_model_len": CONTEXT_TOKENS,
        "max_num_seqs": 4,
        "max_num_batched_tokens": CONTEXT_TOKENS,
        "block_size": BLOCK_TOKENS[options.is_dry],
        "enforce_eager": True,
    }
    arguments.pop("compilation_config", None)
    return LLM(
        str(model),
        skip_tokenizer_init=True,
        enable_lora=True,
        disable_log_stats=True,
        additional_config=IN_SLOTS,
        **arguments,
    )


def _cold(llm: Any, stage: Stage, folders: dict[int, Path]) -> dict[str, dict[str, float]]:
    """Reads with a dropped page cache: stock's, which a step waits for, and Chameleon's, beside it."""
    core = llm.llm_engine.engine_core.engine_core
    manager = core.model_executor.driver_worker.worker.model_runner.lora_manager
    in_step: list[tuple[float, float]] = []
    beside: list[tuple[float, float]] = []
    for number, folder in folders.items():
        drop_page_cache(folder)
        request = LoRARequest(f"cold{number}", 100 + number, str(folder))
        seconds = _seconds_of(manager._load_adapter, request)  # noqa: SLF001  # vLLM's
        in_step.append((seconds, seconds))
        drop_page_cache(folder)
        stage.adapters.execute([DropAdapter(number)])
        start_s = stopwatch_s()
        stage.adapters.execute([LoadAdapter(number, f"a{number}", str(folder))])
        issued_s = stopwatch_s() - start_s
        while not any(isinstance(ack, Loaded) for ack in stage.adapters.poll_acks()):
            continue
        beside.append((issued_s, stopwatch_s() - start_s))
    return {
        "stock, cold, in the step": told(in_step),
        "chameleon, cold, beside the steps": told(beside),
    }


def _issued(begin: Callable[[], None], activate: Callable[[int], float]) -> dict[str, float]:
    """Calls that one activation makes, by name; the most frequent ones."""
    begin()
    for number in range(1, ADAPTERS + 1):
        activate(number)
    with counted() as events:
        for n in range(PROFILED):
            activate(n % ADAPTERS + 1)
        _finish()
    calls = Counter({name: count / PROFILED for name, count, _ in events})
    return dict(calls.most_common(8))


def _seconds_of(work: Callable[[Any], Any], subject: Any) -> float:
    start_s = stopwatch_s()
    work(subject)
    _finish()
    return stopwatch_s() - start_s


def _finish() -> None:
    if torch.cuda.is_available():
        torch.cuda.synchronize()


SHOWN = 15
TOKENS = 16
Event = tuple[str, int, dict[str, float]]
"""A name, how often it came, its own milliseconds on "cpu" and "cuda"."""


def profile_engine(options: RunOptions, results: StageResults) -> None:
    """Notes the calls that take most of a mixed wave, and the scheduler's share of it."""
    engine, adapters = chameleon_here(options)
    engine.run(warm_wave(options, adapters))
    plain = engine.run(mixed_wave(options, adapters, seed=1, tokens=TOKENS))
    with counted() as events, _scheduling(engine) as scheduled_s:
        profiled = engine.run(mixed_wave(options, adapters, seed=2, tokens=TOKENS))
    results.add(
        steps=profiled["steps"],
        wave_s=plain["seconds"],
        profiled_wave_s=profiled["seconds"],
        schedule_ms_a_step=1e3 * sum(scheduled_s) / max(1, len(scheduled_s)),
        launches=_calls(events, "Launch"),
        copies=_calls(events, "Memcpy"),
        waits=_calls(events, "Synchronize"),
        by_cpu=_largest(events, "cpu"),
        by_cuda=_largest(events, "cuda"),
    )


@contextlib.contextmanager
def counted() -> Iterator[list[Event]]:
    """A list that holds, once the block has ended, the calls made in it."""
    activities = [ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(ProfilerActivity.CUDA)
    events: list[Event] = []
    with profile(activities=activities) as profiler:
        yield events
    events += [
        (
            str(event.key),
            int(event.count),
            {
                "cpu": event.self_cpu_time_total / 1e3,
                "cuda": getattr(event, "self_device_time_total", 0.0) / 1e3,
            },
        )
        for event in profiler.key_averages()
    ]


@contextlib.contextmanager
def _scheduling(engine: Any) -> Iterator[list[float]]:
    """Seconds of each of the scheduler's decisions inside the block."""
    scheduler, found = engine._scheduler, []  # noqa: SLF001  # watched, not changed
    schedule = scheduler.schedule

    def timed(*args: Any, **kwargs: Any) -> Any:
        start_s = stopwatch_s()
        try:
            return schedule(*args, **kwargs)
        finally:
            found.append(stopwatch_s() - start_s)

    scheduler.schedule = timed
    try:
        yield found
    finally:
        scheduler.schedule = schedule


def _calls(events: list[Event], word: str) -> dict[str, int]:
    return {name: count for name, count, _ in events if word in name}


def _largest(events: list[Event], place: str) -> list[dict[str, Any]]:
    found = sorted(events, key=lambda event: (-event[2][place], event[0]))[:SHOWN]
    return [
        {"name": name[:90], "count": count, "ms": round(ms[place], 3)} for name, count, ms in found
    ]
