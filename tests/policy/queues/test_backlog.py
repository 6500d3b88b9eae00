"""Every unfinished request in one place, found by stage, lane, adapter and age."""

from chameleon_lora.policy.queues.backlog import Backlog
from chameleon_lora.policy.queues.lanes import RequestState, Stage
from chameleon_lora.policy.request import AdapterId
from tests.policy.queues.test_lanes import state

SEVEN = AdapterId(7)


def waiting(backlog: Backlog, *states: RequestState, is_ready: bool = True) -> None:
    """These requests wait."""
    for each in states:
        backlog.wait(each, is_ready=is_ready)


def test_loading_ones_become_ready_together() -> None:
    """When their adapter is loaded, and wait again when it has left."""
    backlog = Backlog()
    mine, other = state(1, adapter_id=7), state(2, adapter_id=8)
    waiting(backlog, mine, other, is_ready=False)
    assert backlog.lanes[0].head() is None
    backlog.unpark(SEVEN)
    backlog.unpark(SEVEN)
    assert mine is backlog.lanes[0].head()
    backlog.park(SEVEN)
    backlog.park(SEVEN)
    assert [Stage.LOADING] * 2 == [mine.stage, other.stage]


def test_oldest_is_across_lanes_and_keys() -> None:
    """The first that came is the oldest, wherever it stands; loading and running ones do not count."""
    backlog = Backlog()
    backlog.recut((0.5,))
    first, second, third = state(1, 9.0), state(2, 1.0), state(3, 0.0)
    first.lane = 1
    waiting(backlog, third, second, first)
    assert first is backlog.oldest()
    backlog.run(first)
    assert second is backlog.oldest()
    backlog.stop(first)
    waiting(backlog, first)
    assert first is backlog.oldest()
    for each in (first, second, third):
        backlog.run(each)
    assert backlog.oldest() is None


def test_oldest_for_an_adapter_is_the_first_that_came() -> None:
    """Also after it ran and came back, behind none that came later."""
    backlog = Backlog()
    old, young = state(1, 9.0, 7), state(2, 0.0, 7)
    assert backlog.oldest_for(SEVEN) is None
    waiting(backlog, old, young)
    backlog.run(old)
    assert young is backlog.oldest_for(SEVEN)
    backlog.stop(old)
    waiting(backlog, old)
    assert [old, young] == list(backlog.waiting_for(SEVEN))
    assert old is backlog.oldest_for(SEVEN)


def test_left_tokens_of_an_adapter_are_those_of_its_longest() -> None:
    """Foretold 20 and 60 tokens; after the longer ended, 20; then none."""
    backlog = Backlog()
    short, long = state(1, adapter_id=7), state(2, adapter_id=7)
    long.output_tokens = 60
    for each in (short, long):
        waiting(backlog, each)
        backlog.run(each)
        each.admitted_step = 0
    assert {SEVEN: 60} == backlog.left_tokens(0)
    backlog.stop(long)
    assert {SEVEN: 20} == backlog.left_tokens(0)
    backlog.stop(short)
    assert {} == backlog.left_tokens(0)


def test_recut_sorts_by_size() -> None:
    """Each request goes to the lane of its size, ready, loading or running."""
    backlog = Backlog()
    small, large = state(1), state(2, adapter_id=7)
    small.size, large.size = 0.1, 0.9
    waiting(backlog, small)
    waiting(backlog, large, is_ready=False)
    backlog.recut((0.5,))
    assert [0, 1] == [small.lane, large.lane]
    assert [1, 0] == [lane.ready for lane in backlog.lanes]
    assert small is backlog.lanes[0].head()


def test_removed_tickets_are_unknown() -> None:
    """Nothing remembers them."""
    backlog = Backlog()
    gone = state(1, adapter_id=7)
    waiting(backlog, gone)
    backlog.remove(gone)
    assert {} == backlog.states
    assert [] == list(backlog.waiting_for(SEVEN))
    assert backlog.oldest() is None
