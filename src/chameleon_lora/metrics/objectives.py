"""Which requests were served well enough?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import assert_never

from chameleon_lora.metrics.record import RequestRecord


class Objective(Enum):
    """What is limited: times of one request, by vLLM's names."""

    TTFT = "ttft"
    TPOT = "tpot"
    E2EL = "e2el"


Objectives = Mapping[Objective, float]
"""The most each may be, in seconds."""


@dataclass(frozen=True, slots=True)
class Attainment:
    """How many requests met every objective.

    Attributes:
        good: those, all of them completed.
        share: these over all requests, so that a failed one is a miss.
    """

    good: int
    share: float


def attainment(records: Sequence[RequestRecord], objectives: Objectives) -> Attainment | None:
    """How often all objectives were met; None if there are none, or no requests."""
    if not objectives or not records:
        return None
    good = sum(is_good(record, objectives) for record in records)
    return Attainment(good, good / len(records))


def is_good(record: RequestRecord, objectives: Objectives) -> bool:
    """Did the whole answer come, and each of its times within its limit?"""
    return record.is_completed and all(
        _time_s(record, objective) <= most_s for objective, most_s in objectives.items()
    )


def _time_s(record: RequestRecord, objective: Objective) -> float:
    """An answer of one token has no time per token, which meets any limit, as in vLLM's bench."""
    match objective:
        case Objective.TTFT:
            return record.ttft_s or 0.0
        case Objective.TPOT:
            return record.per_token_s or 0.0
        case Objective.E2EL:
            return record.latency_s
        case _:
            assert_never(objective)
