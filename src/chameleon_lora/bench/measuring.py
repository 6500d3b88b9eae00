"""One run against a server that is there: sent, measured and written to a folder."""

import asyncio
import contextlib
import signal
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from chameleon_lora.bench.discovery import UnreachableError, ask_server
from chameleon_lora.bench.replay import OnProgress, Target, run_loop
from chameleon_lora.bench.run_folder import write_run
from chameleon_lora.bench.watch import WatchedRun, watched_replay
from chameleon_lora.errors import BenchError
from chameleon_lora.metrics.errors import ErrorCount, by_cause
from chameleon_lora.metrics.serving import Window, serving_result
from chameleon_lora.workload.requests import TimedRequest


@dataclass(frozen=True, slots=True)
class BenchRun:
    """What is sent, and what of it counts.

    Attributes:
        config: what config.json says, but for how the run ended.
        about: what stands in summary.json before the figures.
        patience_s: what is unanswered so long after the last arrival has failed.
    """

    target: Target
    requests: tuple[TimedRequest, ...] = field(repr=False)
    window: Window
    config: Mapping[str, Any]
    about: Mapping[str, Any]
    patience_s: float

    @property
    def rate_per_s(self) -> float:
        """Requests per second asked for."""
        return float(self.config["rate_per_s"])


@dataclass(frozen=True, slots=True)
class BenchResult:
    """What came of a run.

    Attributes:
        result: what summary.json holds.
        errors: of all its requests, warm-up included.
        stopped: why the run is not whole; None if it is.
    """

    result: Mapping[str, Any]
    errors: tuple[ErrorCount, ...]
    stopped: str | None


def measure(
    run: BenchRun, folder: Path, on_progress: OnProgress, progress_every_s: float
) -> BenchResult:
    """Sends the requests and writes the folder, also of a run that did not come to its end.

    An interrupt (SIGINT) ends the run: what is under way has failed, what was not sent is left out.
    A server that is gone afterwards ends none, for its requests have failed one by one.
    """
    with _own_interrupts():
        watched, is_interrupted = run_loop(_send(run, on_progress, progress_every_s))
    records, window, stopped = watched.records, run.window, None
    if is_interrupted:
        end_s = max((record.end_s for record in records), default=0.0)
        window = replace(window, duration_s=min(window.duration_s, end_s))
        stopped = f"interrupted {end_s:.1f} s into the run"
    elif any(record.error is not None for record in records) and is_gone(run.target):
        stopped = f"nobody answers at {run.target.base_url} any more"
    result = {**run.about, **serving_result(records, window)}
    config = {**run.config, "is_partial": stopped is not None, "stopped": stopped}
    write_run(folder, config, records, result, watched.samples)
    return BenchResult(result, by_cause(records), stopped)


@contextlib.contextmanager
def _own_interrupts() -> Iterator[None]:
    """Whatever a loop does with SIGINT inside is undone on the way out; uvloop leaves its own there."""
    before = signal.getsignal(signal.SIGINT)
    try:
        yield
    finally:
        signal.signal(signal.SIGINT, before)


async def _send(
    run: BenchRun, on_progress: OnProgress, progress_every_s: float
) -> tuple[WatchedRun, bool]:
    """What came, and whether an interrupt ended it."""
    stop = asyncio.Event()
    asyncio.get_running_loop().add_signal_handler(signal.SIGINT, stop.set)
    watched = await watched_replay(
        run.target,
        run.requests,
        patience_s=run.patience_s,
        on_progress=on_progress,
        progress_every_s=progress_every_s,
        stop=stop,
    )
    return watched, stop.is_set()


def is_gone(target: Target) -> bool:
    """Does nobody answer there any more?"""
    try:
        asyncio.run(ask_server(target.base_url, dict(target.headers)))
    except UnreachableError:
        return True
    except BenchError:
        return False
    return False
