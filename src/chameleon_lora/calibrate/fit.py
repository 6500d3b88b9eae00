"""Costs of an engine from steps and copies that were timed: non-negative least squares.

Errors are relative, so short steps count as much as long ones, and a machine's hiccups do not tell one
cost from another (Huber's loss). What they cost on average is then shared out: all costs are scaled so
that the time of all steps together is right. Every fifth step is kept out, to tell the error.
"""

import contextlib
from collections.abc import Sequence
from dataclasses import dataclass, fields

import numpy as np
import numpy.typing as npt

from chameleon_lora.errors import BenchError
from chameleon_lora.metrics.step_work import StepWork
from chameleon_lora.sim.profile import Link, StepCosts

with contextlib.suppress(ImportError):  # of the extra `calibrate`; the command says so without it
    from scipy.optimize import nnls

Array = npt.NDArray[np.float64]
COSTS = tuple(field.name for field in fields(StepCosts))
MIN_STEPS = 50
HELD_OUT = 5
ROUNDS = 20
HUBER = 1.345  # of the errors' deviation: 95 % as good as least squares where noise is normal
TINY_S = 1e-7
LONGEST = 3.0  # times its costs: what a step takes beyond is no property of the engine


@dataclass(frozen=True, slots=True)
class MeasuredStep:
    """One step that an engine took; `seconds` without copies of adapters."""

    work: StepWork
    seconds: float


@dataclass(frozen=True, slots=True)
class MeasuredCopy:
    """The size of an adapter that was copied, and how long the copy took."""

    nbytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class StepFit:
    """Costs, and how far off they are on steps that they were not fitted to.

    Attributes:
        step_error: mean of |fitted - measured| / measured.
        total_error: of all those steps' time together, (fitted - measured) / measured.
        held_out: how many steps that were.
    """

    costs: StepCosts
    step_error: float
    total_error: float
    held_out: int


def fit_steps(steps: Sequence[MeasuredStep]) -> StepFit:
    """The costs that explain the steps best.

    Raises:
        BenchError: there are too few steps.
    """
    if len(steps) < MIN_STEPS:
        raise BenchError(f"{len(steps)} steps are too few to fit costs to; measure {MIN_STEPS}")
    work = np.array([_columns(step.work) for step in steps])
    seconds = np.array([step.seconds for step in steps])
    is_held_out = np.arange(len(steps)) % HELD_OUT == HELD_OUT - 1
    values = _robust(work[~is_held_out], seconds[~is_held_out])
    fitted, measured = work[is_held_out] @ values, seconds[is_held_out]
    return StepFit(
        costs=StepCosts(**dict(zip(COSTS, map(float, values), strict=True))),
        step_error=float(np.mean(np.abs(fitted - measured) / measured)),
        total_error=float(fitted.sum() / measured.sum() - 1.0),
        held_out=len(measured),
    )


def fit_link(copies: Sequence[MeasuredCopy]) -> Link:
    """The latency and rate that explain the copies best.

    Raises:
        BenchError: there is no copy.
    """
    if not copies:
        raise BenchError("no copy of an adapter was measured: give at least one adapter")
    nbytes = np.array([[1.0, float(copy.nbytes)] for copy in copies])
    latency_s, byte_s = _robust(nbytes, np.array([copy.seconds for copy in copies]))
    fastest_byte_s = 1e-12  # copies whose time does not depend on their size: no rate above 1 TB/s
    return Link(bytes_per_s=1.0 / max(float(byte_s), fastest_byte_s), latency_s=float(latency_s))


def _robust(matrix: Array, seconds: Array) -> Array:
    """Non-negative costs of the columns, by relative errors under Huber's loss; right in sum.

    Least squares again and again, each error weighted by how far off the costs of the last time were:
    relative to what they foretold, which `least_squares` cannot be told. Columns that are nought
    everywhere cost nothing.
    """
    fitted = seconds
    weights = np.ones_like(seconds)
    values = np.zeros(matrix.shape[1])
    for _ in range(ROUNDS):
        scale = np.sqrt(weights) / np.maximum(fitted, TINY_S)
        scaled = matrix * scale[:, None]
        sizes = np.linalg.norm(scaled, axis=0)
        sizes[sizes == 0.0] = 1.0  # of columns as unlike as tokens and ranks, none is to be lost
        values = nnls(scaled / sizes, seconds * scale)[0] / sizes
        fitted = matrix @ values
        errors = np.abs(seconds - fitted) / np.maximum(fitted, TINY_S)
        deviation = max(1e-6, 1.4826 * float(np.median(errors)))
        weights = np.minimum(1.0, HUBER * deviation / np.maximum(errors, 1e-12))
    return values * float(np.minimum(seconds, LONGEST * fitted).sum() / max(TINY_S, fitted.sum()))


def _columns(work: StepWork) -> list[float]:
    """What each of COSTS multiplies; the same sum as `StepCosts.step_s`."""
    has_adapter = float(work.adapters > 0)
    has_lora_prefill = float(work.adapters > 0 and work.lora_prefill_ranks > 0)
    by_name = {
        "base_s": 1.0,
        "prefill_token_s": float(work.prefill_tokens),
        "decode_request_s": float(work.decode_requests),
        "context_token_s": float(work.context_tokens),
        "attention_pair_s": work.attention_pairs,
        "lora_base_s": has_adapter,
        "lora_prefill_base_s": has_lora_prefill,
        "lora_adapter_s": has_adapter * work.adapters,
        "lora_adapter_rank_s": has_adapter * work.adapter_ranks,
        "lora_prefill_rank_s": has_adapter * work.lora_prefill_ranks,
        "lora_decode_rank_s": has_adapter * work.lora_decode_ranks,
    }
    return [by_name[name] for name in COSTS]
