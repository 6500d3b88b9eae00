"""A lane's order, by all and by adapter."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.policy.queues.lanes import Lane, RequestState, Stage
from chameleon_lora.policy.queues.shares import Shares
from chameleon_lora.policy.request import AdapterId
from tests.policy.engine_model import request


def state(sequence: int, key: float = 0.0, adapter_id: int | None = None) -> RequestState:
    """A request that is not in a lane yet."""
    return RequestState(
        request=request(f"r{sequence}", adapter_id, limit=100), entry=None, sequence=sequence,
        key=key, arrived_s=0.0, size=0.5, output_tokens=20, cost_tokens=30, prefill_tokens=10,
        lane=0, stage=Stage.LOADING,
    )  # fmt: skip


def test_empty_lane_has_no_head() -> None:
    """Neither at all nor of an adapter."""
    lane = Lane(Shares())
    assert lane.head() is None
    assert lane.head_of(None) is None


def test_smallest_key_first_then_the_oldest() -> None:
    """Of equal keys the one that came first."""
    lane = Lane(Shares())
    third, first, second = state(1, 2.0), state(2, 1.0), state(3, 1.0)
    for waiting in (third, first, second):
        lane.push(waiting)
    order = []
    while head := lane.head():
        order.append(head)
        lane.leave(head, Stage.RUNNING)
    assert [first, second, third] == order


def test_head_of_an_adapter() -> None:
    """Each adapter, and the base model, has its own first one."""
    lane = Lane(Shares())
    base, one, two = state(1), state(2, adapter_id=7), state(3, adapter_id=7)
    for waiting in (two, one, base):
        lane.push(waiting)
    assert base is lane.head_of(None)
    assert one is lane.head_of(AdapterId(7))
    lane.leave(one, Stage.LOADING)
    assert two is lane.head_of(AdapterId(7))


def test_one_that_comes_back_has_its_old_place() -> None:
    """After a preemption it stands before those that came later, and once only."""
    lane = Lane(Shares())
    states = [state(number) for number in range(3)]
    for waiting in states:
        lane.push(waiting)
    lane.leave(states[1], Stage.RUNNING)
    lane.push(states[1])
    lane.leave(states[0], Stage.RUNNING)
    assert states[1] is lane.head()
    lane.leave(states[1], Stage.RUNNING)
    assert states[2] is lane.head()


def test_what_left_is_not_kept() -> None:
    """After a thousand requests the lane remembers none of them."""
    lane = Lane(Shares())
    for number in range(1000):
        waiting = state(number, adapter_id=number % 10)
        lane.push(waiting)
        lane.leave(waiting, Stage.RUNNING)
    kept = [heap for heap in lane._order._heaps.values() if heap._heap]
    assert ([], {}) == (kept, lane._by_adapter)


def test_left_tokens_shrink_and_then_grow() -> None:
    """Foretold 20: 15 are left after 5 steps; past 20 half as many again, up to the client's 100."""
    running = replace(state(1), admitted_step=10)
    assert [15, 1, 11, 16, 1] == [running.left_tokens(10 + done) for done in (5, 19, 20, 30, 99)]


@given(
    keys=st.lists(st.integers(0, 5), min_size=1, max_size=20),
    leaves=st.lists(st.integers(0, 30), max_size=30),
)
def test_head_is_that_of_a_sorted_list(keys: list[int], leaves: list[int]) -> None:
    """Whoever leaves and comes back, the head is the least of those that are ready."""
    lane, states = Lane(Shares()), []
    for number, key in enumerate(keys):
        states.append(state(number, float(key), number % 3))
        lane.push(states[-1])
    for leave in leaves:
        chosen = states[leave % len(states)]
        if chosen.stage is Stage.READY:
            lane.leave(chosen, Stage.RUNNING)
        else:
            lane.push(chosen)
        ready = [t for t in states if t.stage is Stage.READY]
        assert min(ready, key=lambda t: t.order, default=None) is lane.head()
        for adapter_id in range(3):
            mine = [t for t in ready if t.request.adapter_id == adapter_id]
            expected = min(mine, key=lambda t: t.order, default=None)
            assert expected is lane.head_of(AdapterId(adapter_id))
        assert len(ready) == lane.ready
