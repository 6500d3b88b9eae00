"""In which steps somebody may be admitted, and in which adapters are prefetched."""

import pytest

from chameleon_lora.policy.admission.overtaking import AdmissionInterval


def steps(every_steps: int, count: int) -> tuple[list[int], list[int]]:
    """Of the steps after an admission in step 1, those that admit and those that prefetch."""
    interval = AdmissionInterval(every_steps)
    interval.passed(1)
    interval.admitted()
    admitting, prefetching = [], []
    for _ in range(count):
        if interval.is_admitting:
            admitting.append(interval.step)
        if interval.is_prefetching:
            prefetching.append(interval.step)
        interval.passed(1)
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
    interval = AdmissionInterval(10)
    assert interval.is_admitting
    assert interval.is_prefetching


def test_steps_that_passed_without_a_question_count() -> None:
    """Nine at once are as good as one by one."""
    interval = AdmissionInterval(10)
    interval.admitted()
    interval.passed(9)
    assert not interval.is_admitting
    interval.passed(1)
    assert interval.is_admitting
