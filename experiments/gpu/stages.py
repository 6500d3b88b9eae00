"""The stages of the run, in the order of their worth: what each does, needs and should take."""

from collections.abc import Callable
from dataclasses import dataclass

from chameleon_lora.errors import ConfigError
from experiments.gpu.compared import compare_limits, compare_loads, compare_policies, seconds_of
from experiments.gpu.engines import measure_engines, served_adapters
from experiments.gpu.folders import size_bytes
from experiments.gpu.given import Given
from experiments.gpu.machine import look
from experiments.gpu.note import Note
from experiments.gpu.order import OVERRUN, Step
from experiments.gpu.proof import prove
from experiments.gpu.sanitizer import sanitize

Work = Callable[[Given, Note], None]
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
    estimate_s: Callable[[Given], float]
    needs: tuple[str, ...] = ()
    needs_cuda: bool = False

    def step(self, given: Given) -> Step:
        """As the order sees it."""
        estimate_s = self.estimate_s(given) + OTHERS_S
        overrun = SHARED if given.is_dry else OVERRUN
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


def _prepare(given: Given, note: Note) -> None:
    _, adapters = served_adapters(given)
    note.add(adapters=len(adapters), bytes=size_bytes(adapters))


def _proof(*, is_v2: bool, is_async: bool) -> Stage:
    is_default = is_v2 and is_async  # what vLLM runs on a GPU unless told otherwise

    def checks(given: Given) -> int:
        return given.scale.proof.checks if is_default else given.scale.proof.fewer_checks

    def work(given: Given, note: Note) -> None:
        prove(
            given, note, is_v2=is_v2, is_async=is_async, compiles=is_default, checks=checks(given)
        )

    def estimate_s(given: Given) -> float:
        seconds = given.scale.seconds
        start_s = seconds["proof"] * (1.3 if is_default else 1.0)
        return 2 * start_s + checks(given) * seconds["check"]

    name = f"proof-{'v2' if is_v2 else 'v1'}-{'async' if is_async else 'sync'}"
    return Stage(name, "proof", work, estimate_s, needs=("machine",), needs_cuda=is_v2 or is_async)


def _time_activations(given: Given, note: Note) -> None:
    from experiments.gpu.activation import time_activations  # noqa: PLC0415  # imports vLLM

    time_activations(given, note)


def _profile(given: Given, note: Note) -> None:
    from experiments.gpu.profiling import profile_engine  # noqa: PLC0415  # imports torch's profiler

    profile_engine(given, note)


def _engine_s(count: float) -> Callable[[Given], float]:
    return lambda given: count * given.scale.seconds["engine"]


SERVED = ("machine", "adapters")
STAGES: tuple[Stage, ...] = (
    Stage("machine", "basis", look, lambda _: 10.0),
    Stage("adapters", "basis", _prepare, lambda given: 5.0 if given.is_dry else 45.0),
    _proof(is_v2=True, is_async=True),
    Stage("activation", "measure", _time_activations, _engine_s(0.8), needs=SERVED),
    Stage(
        "compare",
        "serving",
        compare_loads,
        lambda given: seconds_of(given, 2, len(given.scale.serving.loads), probes=True),
        needs=SERVED,
    ),
    Stage("engines", "measure", measure_engines, _engine_s(3.0), needs=SERVED),
    _proof(is_v2=False, is_async=True),
    _proof(is_v2=True, is_async=False),
    _proof(is_v2=False, is_async=False),
    Stage("profile", "measure", _profile, _engine_s(1.3), needs=SERVED),
    Stage(
        "limits",
        "serving",
        compare_limits,
        lambda given: seconds_of(given, 2, len(given.scale.serving.cliff) + 6, probes=False),
        needs=(*SERVED, "compare"),
    ),
    Stage(
        "policies",
        "serving",
        compare_policies,
        lambda given: seconds_of(
            given,
            1 + len(given.scale.serving.policies) + len(given.scale.serving.other_slots),
            1,
            probes=False,
        ),
        needs=(*SERVED, "compare"),
    ),
    Stage(
        "sanitizer", "proof", sanitize, lambda _: 180.0, needs=("machine",), needs_cuda=True
    ),
)  # fmt: skip
