"""The order in which things happen in simulated time."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.sim.kernel import Kernel, Priority

PLANNED = st.lists(
    st.tuples(st.sampled_from((0.0, 0.5, 1.0, 2.0)), st.sampled_from(Priority)), max_size=20
)


@given(PLANNED)
def test_by_time_then_priority_then_plan(planned: list[tuple[float, Priority]]) -> None:
    """At one time copies come before arrivals before steps, and of two alike the first planned."""
    kernel, seen = Kernel(), list[tuple[float, Priority, int]]()
    for number, (time_s, priority) in enumerate(planned):

        def note(now_s: float, priority: Priority = priority, number: int = number) -> None:
            seen.append((now_s, priority, number))

        kernel.plan(time_s, priority, note)
    kernel.run()
    assert sorted((*item, number) for number, item in enumerate(planned)) == seen


def test_what_happens_may_plan_more() -> None:
    """An event at the present time still happens, after those planned before it."""
    kernel, seen = Kernel(), list[tuple[str, float]]()

    def first(now_s: float) -> None:
        seen.append(("first", now_s))
        kernel.plan(now_s, Priority.STEP, lambda now_s: seen.append(("third", now_s)))
        kernel.plan(now_s + 1.0, Priority.COPY, lambda now_s: seen.append(("last", now_s)))

    kernel.plan(3.0, Priority.STEP, first)
    kernel.plan(3.0, Priority.STEP, lambda now_s: seen.append(("second", now_s)))
    kernel.run()
    assert [("first", 3.0), ("second", 3.0), ("third", 3.0), ("last", 4.0)] == seen
    assert 4.0 == kernel.now_s


def test_nothing_happens_in_the_past() -> None:
    """To plan for a time gone by is a fault."""
    kernel = Kernel()
    kernel.plan(2.0, Priority.STEP, lambda _: kernel.plan(1.0, Priority.STEP, print))
    with pytest.raises(AssertionError, match=r"1\.0 is before now, 2\.0"):
        kernel.run()


def test_next_is_the_earliest_planned() -> None:
    """Infinity while nothing is."""
    kernel = Kernel()
    assert float("inf") == kernel.next_s()
    kernel.plan(5.0, Priority.STEP, lambda _: None)
    kernel.plan(2.0, Priority.STEP, lambda _: None)
    assert 2.0 == kernel.next_s()
