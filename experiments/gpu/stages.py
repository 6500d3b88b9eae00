"""The stages of the run, in the order of their worth: what each does, needs and should take.

`python -m experiments.gpu.stages OUT STAGE`, which runner.py starts, runs one. What the stage finds goes
to its results, why it failed too: exit code 0 or 1. SIGTERM ends it as Ctrl-C would, so that servers and
engines are stopped on the way out.
"""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.errors import ChameleonError, ConfigError
from experiments.gpu.compared import compare, compare_s
from experiments.gpu.engines import measure_engines, served_adapters
from experiments.gpu.folders import size_bytes
from experiments.gpu.machine import look
from experiments.gpu.outcome import FOUND_ENDING, REASON, StageResults, place_of
from experiments.gpu.proof import prove
from experiments.gpu.runner import OVERRUN, Step
from experiments.gpu.scale import RunOptions, read_options

Work = Callable[[RunOptions, StageResults], None]
OTHERS_S = 15.0
"""Interpreter, imports and the end of a stage."""
SHARED = 12.0
"""A dry run may take so many times its estimates: its cores are often shared with other work."""


@dataclass(frozen=True, slots=True)
class Stage:
    """One part of the run, in a process of its own.

    Attributes:
        group: by which --stages may name it with others of its kind.
        work: does it and notes figures; raises what went wrong.
        estimate_s: what it should take.
    """

    name: str
    group: str
    work: Work
    estimate_s: Callable[[RunOptions], float]
    needs: tuple[str, ...] = ()
    needs_cuda: bool = False

    def step(self, options: RunOptions) -> Step:
        """As the order sees it."""
        estimate_s = self.estimate_s(options) + OTHERS_S
        overrun = SHARED if options.is_dry else OVERRUN
        return Step(self.name, estimate_s, self.needs, self.needs_cuda, overrun)


def chosen(words: tuple[str, ...]) -> list[Stage]:
    """The stages of these names and groups, in the run's order; all of them for no words.

    Raises:
        ConfigError: a word names none.
    """
    known = {word for stage in STAGES for word in (stage.name, stage.group)}
    if unknown := [word for word in words if word not in known]:
        raise ConfigError(
            f"--stages {' '.join(unknown)}: no such stage; there are {', '.join(sorted(known))}"
        )
    return [stage for stage in STAGES if not words or {stage.name, stage.group} & {*words}]


def _prepare(options: RunOptions, results: StageResults) -> None:
    _, adapters = served_adapters(options)
    results.add(adapters=len(adapters), bytes=size_bytes(adapters))


def _proof(*, is_v2: bool, is_async: bool) -> Stage:
    is_default = is_v2 and is_async  # what vLLM runs on a GPU unless told otherwise

    def checks(options: RunOptions) -> int:
        return options.scale.proof.checks if is_default else options.scale.proof.fewer_checks

    def work(options: RunOptions, results: StageResults) -> None:
        prove(
            options,
            results,
            is_v2=is_v2,
            is_async=is_async,
            compiles=is_default,
            checks=checks(options),
        )

    def estimate_s(options: RunOptions) -> float:
        seconds = options.scale.seconds
        start_s = seconds["proof"] * (1.3 if is_default else 1.0)
        return 2 * start_s + checks(options) * seconds["check"]

    name = f"proof-{'v2' if is_v2 else 'v1'}-{'async' if is_async else 'sync'}"
    return Stage(name, "proof", work, estimate_s, needs=("machine",), needs_cuda=is_v2 or is_async)


def _time_activations(options: RunOptions, results: StageResults) -> None:
    from experiments.gpu.activation import time_activations  # noqa: PLC0415  # imports vLLM

    time_activations(options, results)


def _profile(options: RunOptions, results: StageResults) -> None:
    from experiments.gpu.activation import profile_engine  # noqa: PLC0415  # imports torch's profiler

    profile_engine(options, results)


def _engine_s(count: float) -> Callable[[RunOptions], float]:
    return lambda options: count * options.scale.seconds["engine"]


SERVED = ("machine", "adapters")
STAGES: tuple[Stage, ...] = (
    Stage("machine", "basis", look, lambda _: 10.0),
    Stage("adapters", "basis", _prepare, lambda options: 5.0 if options.is_dry else 45.0),
    _proof(is_v2=True, is_async=True),
    Stage("activation", "measure", _time_activations, _engine_s(0.8), needs=SERVED),
    Stage("compare", "measure", compare, compare_s, needs=SERVED),
    Stage("engines", "measure", measure_engines, _engine_s(3.0), needs=SERVED),
    _proof(is_v2=False, is_async=True),
    _proof(is_v2=True, is_async=False),
    _proof(is_v2=False, is_async=False),
    Stage("profile", "measure", _profile, _engine_s(1.3), needs=SERVED),
)  # fmt: skip


LONGEST = 600  # characters of a reason


def run(out: Path, name: str) -> int:
    """The stage's exit code."""
    options = read_options(out)
    (stage,) = chosen((name,))
    results = StageResults(place_of(out, name).with_suffix(FOUND_ENDING))
    try:
        stage.work(options, results)
    except ChameleonError as error:
        results.add(**{REASON: str(error).strip()[:LONGEST]})
        return 1
    except BaseException as error:  # noqa: BLE001  # whatever it is, the next stage goes on
        traceback.print_exc()
        is_stopped = isinstance(error, KeyboardInterrupt)
        reason = "it was stopped" if is_stopped else f"{type(error).__name__}: {error}"
        results.add(**{REASON: reason.strip()[:LONGEST]})
        return 1
    return 0


if __name__ == "__main__":
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)
    status = run(Path(sys.argv[1]), sys.argv[2])
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)  # threads of an engine that failed may never end
