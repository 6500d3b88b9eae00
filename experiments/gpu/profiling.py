"""What of a step's time remains: torch's profiler over a wave of requests on Chameleon's engine."""

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch.profiler import ProfilerActivity, profile

from chameleon_lora.engine_vllm.event_log import stopwatch_s
from experiments.gpu.engines import chameleon_here, mixed_wave, warm_wave
from experiments.gpu.given import Given
from experiments.gpu.note import Note

SHOWN = 15
TOKENS = 16
Event = tuple[str, int, dict[str, float]]
"""A name, how often it came, its own milliseconds on "cpu" and "cuda"."""


def profile_engine(given: Given, note: Note) -> None:
    """Notes the calls that take most of a mixed wave, and the scheduler's share of it."""
    engine, adapters = chameleon_here(given)
    engine.run(warm_wave(given, adapters))
    plain = engine.run(mixed_wave(given, adapters, seed=1, tokens=TOKENS))
    with counted() as events, _scheduling(engine) as scheduled_s:
        profiled = engine.run(mixed_wave(given, adapters, seed=2, tokens=TOKENS))
    note.add(
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
