"""In which steps somebody may be admitted, and in which adapters are prefetched."""

import pytest

from chameleon_lora.policy.cadence import Cadence


def steps(every_steps: int, count: int) -> tuple[list[int], list[int]]:
    """Of the steps after an admission in step 1, those that admit and those that prefetch."""
    cadence = Cadence(every_steps)
    cadence.passed(1)
    cadence.admitted()
    admitting, prefetching = [], []
    for _ in range(count):
        if cadence.is_admitting:
            admitting.append(cadence.step)
        if cadence.is_prefetching:
            prefetching.append(cadence.step)
        cadence.passed(1)
    return admitting, prefetching


@pytest.mark.parametrize(
    ("every_steps", "admitting", "prefetching"), [(1, 2, 1), (2, 3, 2), (5, 6, 3), (10, 11, 6)]
)
def test_prefetches_begin_halfway_to_the_next_admission(
    every_steps: int, admitting: int, prefetching: int
) -> None:
    """Where each step admits, each prefetches too, also the one that admitted somebody."""
    first = (list(range(admitting, 16)), list(range(prefetching, 16)))
    assert first == steps(every_steps, 15)


def test_a_new_engine_admits_at_once() -> None:
    """In its first step, and prefetches."""
    cadence = Cadence(10)
    assert cadence.is_admitting
    assert cadence.is_prefetching


def test_steps_that_passed_without_a_question_count() -> None:
    """Nine at once are as good as one by one."""
    cadence = Cadence(10)
    cadence.admitted()
    cadence.passed(9)
    assert not cadence.is_admitting
    cadence.passed(1)
    assert cadence.is_admitting
