"""Which stage is next, and whether it may begin: nothing here runs anything."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from experiments.gpu.outcome import Outcome, Status

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
