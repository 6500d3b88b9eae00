"""Copies queue for a link."""

from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.sim.adapter_copies import LinkQueue
from chameleon_lora.sim.profile import Link

TENTH = Link(bytes_per_s=100.0, latency_s=0.1)


def test_an_idle_link_copies_at_once() -> None:
    """50 bytes at 100 a second take half a second and the latency."""
    assert 3.6 == LinkQueue(TENTH).copy(50, 3.0)


def test_copies_wait_for_those_before() -> None:
    """Two at the same time end one after the other; one that comes later finds the link idle."""
    queue = LinkQueue(Link(100.0))
    assert [1.0, 3.0] == [queue.copy(100, 0.0), queue.copy(200, 0.0)]
    assert 4.0 == queue.copy(100, 2.5)
    assert 11.0 == queue.copy(100, 10.0)


@given(st.lists(st.tuples(st.integers(0, 50), st.integers(0, 500)), max_size=20))
def test_counts_time_and_bytes(copies: list[tuple[int, int]]) -> None:
    """Busy for the sum of its copies, whose bytes add up; no two at one time, in order."""
    queue, now_s, free_s = LinkQueue(TENTH), 0.0, 0.0
    for gap_s, nbytes in copies:
        now_s += gap_s
        end_s = queue.copy(nbytes, now_s)
        assert end_s == max(now_s, free_s) + TENTH.copy_s(nbytes)
        free_s = end_s
    assert sum(nbytes for _, nbytes in copies) == queue.nbytes
    assert abs(sum(TENTH.copy_s(nbytes) for _, nbytes in copies) - queue.busy_s) < 1e-9
