"""Which requests were served well enough?"""

import pytest

from chameleon_lora.metrics.objectives import Attainment, Objective, attainment, is_good
from tests.metrics.records import record

TTFT, TPOT, E2EL = Objective.TTFT, Objective.TPOT, Objective.E2EL
SLOW_START = record(0, 0.0, (2.0, 2.1))
SLOW_TOKENS = record(1, 0.0, (0.1, 1.1))


@pytest.mark.parametrize(
    ("objectives", "expected"),
    [
        ({TTFT: 1.0}, [False, True]),
        ({TPOT: 0.5}, [True, False]),
        ({E2EL: 1.1}, [False, True]),
        ({TTFT: 1.0, TPOT: 0.5}, [False, False]),
        ({TTFT: 2.0, TPOT: 1.0}, [True, True]),
    ],
)
def test_each_objective_limits_its_own_time(
    objectives: dict[Objective, float], expected: list[bool]
) -> None:
    """The limit itself is in time; all of them must be met."""
    assert expected == [is_good(row, objectives) for row in (SLOW_START, SLOW_TOKENS)]


def test_an_answer_of_one_token_meets_any_limit_per_token() -> None:
    """It has no time per token, as in vLLM's bench."""
    assert is_good(record(0, 0.0, (1.0,)), {TPOT: 1e-9})


def test_failed_requests_are_misses() -> None:
    """One of two failed: half are good, however fast the failed one's token was."""
    failed = record(1, 0.0, (0.1,), error="broken")
    assert Attainment(1, 0.5) == attainment([record(0, 0.0, (0.1,)), failed], {TTFT: 1.0})


def test_without_objectives_or_requests_there_is_no_attainment() -> None:
    """Nothing was asked, or nobody."""
    assert attainment([SLOW_START], {}) is None
    assert attainment([], {TTFT: 1.0}) is None
