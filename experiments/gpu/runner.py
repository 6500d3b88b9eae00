"""Which stage is next, and its run in a process of its own, within the time there is."""

import contextlib
import os
import re
import signal
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO

from experiments.gpu.outcome import (
    FOUND_ENDING,
    REASON,
    STAGES,
    Outcome,
    Status,
    place_of,
    read_outcome,
    read_results,
    write_outcome,
)

RESERVE_S = 12.0
"""Kept for ending the last stage and writing the report."""
OVERRUN, LEAST_S = 2.5, 60.0


@dataclass(frozen=True, slots=True)
class Step:
    """A stage as the order sees it.

    Attributes:
        estimate_s: what it should take.
        needs: stages that must be done before.
        needs_cuda: it has nothing to do without.
        overrun: it is stopped after so many times its estimate, but not within LEAST_S.
    """

    name: str
    estimate_s: float
    needs: tuple[str, ...] = ()
    needs_cuda: bool = False
    overrun: float = OVERRUN


@dataclass(frozen=True, slots=True)
class Begin:
    """It may run, for so long at most."""

    limit_s: float


def in_order(steps: Sequence[Step], known: Mapping[str, Outcome]) -> list[Step]:
    """Those that are not done: first what was never tried, then what failed, each as listed."""
    fresh = [step for step in steps if step.name not in known]
    again = [step for step in steps if step.name in known and not is_done(known, step.name)]
    return fresh + again


def decide(
    step: Step, known: Mapping[str, Outcome], left_s: float, *, has_cuda: bool
) -> Begin | Outcome:
    """Whether the stage may begin with so much time left; if not, the outcome that says why."""
    if step.needs_cuda and not has_cuda:
        return Outcome(step.name, Status.SKIPPED, "needs CUDA")
    if missing := [name for name in step.needs if not is_done(known, name)]:
        return Outcome(step.name, Status.LEFT, f"needs {', '.join(missing)}, not done")
    usable_s = left_s - RESERVE_S
    if step.estimate_s > usable_s:
        return Outcome(
            step.name,
            Status.LEFT,
            f"would take about {step.estimate_s:.0f} s, {max(0.0, usable_s):.0f} s were left",
        )
    return Begin(min(usable_s, max(LEAST_S, step.overrun * step.estimate_s)))


def is_done(known: Mapping[str, Outcome], name: str) -> bool:
    """Has it been done?"""
    return name in known and known[name].status is Status.DONE


ROOT = Path(__file__).resolve().parents[2]
GRACE_S = 30.0
"""For a stage that is told to stop: its servers have 20 s of their own."""
LOG_LINES = 3
LONGEST = 600  # characters of a reason
ERROR = re.compile(r"\w+(Error|Exception): ")


@dataclass(slots=True)
class Runner:
    """One call's.

    Attributes:
        limit_s: of the whole call.
        device: the GPU's name; None without CUDA.
        command: starts a stage's process, for its name.
        environment: of the stages, on top of our own.
        known: how stages ended, of earlier calls too.
    """

    out: Path
    steps: Sequence[Step]
    limit_s: float
    device: str | None
    command: Callable[[str], list[str]]
    environment: Mapping[str, str]
    clock: Callable[[], float]
    say: Callable[[str], None]
    known: dict[str, Outcome] = field(default_factory=dict)

    def run(self) -> bool:
        """Whether it came to its end; an interrupt ends it with what there is."""
        began_s = self.clock()
        self.known.update(known_of(self.out))
        try:
            for step in in_order(self.steps, self.known):
                left_s = self.limit_s - (self.clock() - began_s)
                found = decide(step, self.known, left_s, has_cuda=self.device is not None)
                if isinstance(found, Outcome):
                    self._keep(found)
                    continue
                self.say(f"{step.name}: about {step.estimate_s:.0f} s, {left_s:.0f} s left")
                self._keep(self._outcome(step, found.limit_s))
        except KeyboardInterrupt:
            return False
        return True

    def _keep(self, outcome: Outcome) -> None:
        """Writes it, unless it would hide how the stage once failed."""
        if outcome.status is not Status.LEFT or outcome.stage not in self.known:
            self.known[outcome.stage] = outcome
            write_outcome(self.out, outcome)
        tail = f" ({outcome.reason})" if outcome.reason else ""
        self.say(f"{outcome.stage}: {outcome.status.value}, {outcome.seconds:.0f} s{tail}")

    def _outcome(self, step: Step, limit_s: float) -> Outcome:
        """Of a stage that is run now."""
        place_of(self.out, step.name).with_suffix(FOUND_ENDING).unlink(missing_ok=True)
        log = self.out / "logs" / f"{step.name}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        start_s = self.clock()
        try:
            with log.open("wb") as stream:
                status = self._run(step.name, stream, limit_s)
        except KeyboardInterrupt:
            self._keep(replace(self._ended(step.name, start_s), reason="the call was ended"))
            raise
        ended = self._ended(step.name, start_s)
        if status == 0:
            return replace(ended, status=Status.DONE)
        reason = f"stopped after {limit_s:.0f} s, its limit"
        if status is not None:
            reason = _with_log(ended.reason, log, status)
        return replace(ended, reason=reason)

    def _ended(self, name: str, start_s: float) -> Outcome:
        """Of a stage whose process is gone, with what it had found."""
        figures = read_results(place_of(self.out, name).with_suffix(FOUND_ENDING))
        reason, seconds = figures.pop(REASON, ""), self.clock() - start_s
        return Outcome(name, Status.FAILED, reason, seconds, figures, self.device or "CPU")

    def _run(self, name: str, log: IO[bytes], limit_s: float) -> int | None:
        """The stage's exit code; None if it took too long. Afterwards its process is gone."""
        process = subprocess.Popen(
            self.command(name),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            cwd=ROOT,
            env={**os.environ, **self.environment},
            start_new_session=True,
        )
        try:
            return process.wait(limit_s)
        except subprocess.TimeoutExpired:
            _stop(process)
            return None
        except KeyboardInterrupt:
            _stop(process)
            raise


def known_of(out: Path) -> dict[str, Outcome]:
    """How stages ended in earlier calls; those that could not run then are tried again."""
    found = [read_outcome(out, path.stem) for path in sorted((out / STAGES).glob("*.json"))]
    again = (Status.LEFT, Status.SKIPPED)
    return {one.stage: one for one in found if one is not None and one.status not in again}


def child_command(out: Path) -> Callable[[str], list[str]]:
    """Starts a stage of this output folder."""
    return lambda name: [sys.executable, "-m", "experiments.gpu.stages", str(out), name]


def _stop(process: subprocess.Popen[bytes]) -> None:
    """Ends the stage, gently first; its whole group after that."""
    with contextlib.suppress(ProcessLookupError):
        process.send_signal(signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(GRACE_S)
    with contextlib.suppress(ProcessLookupError):
        os.killpg(
            process.pid, signal.SIGKILL
        )  # also after a clean end: a child may have outlived it
    process.wait()


def _with_log(reason: str, log: Path, status: int) -> str:
    """The stage's reason, or else the end of its log; then the last error in the log."""
    lines = log.read_text(encoding="utf-8", errors="replace").strip().splitlines()
    reason = reason or f"ended with {status}: {' / '.join(lines[-LOG_LINES:])}"
    error = next((line for line in reversed(lines) if ERROR.search(line)), "").strip()
    return reason if not error or error in reason else f"{reason}; in its log: {error}"[:LONGEST]
