"""The plan as vLLM's scheduler sees it: its waiting queue."""

from collections.abc import Callable

import pytest

from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.core.waiting_queue import EmptyQueue, WaitingQueue
from tests.engine_vllm.fake_requests import ROOM, FakeRequest, carry_out, make_driver

Queues = tuple[Driver, WaitingQueue]


@pytest.fixture
def queues() -> Queues:
    """A driver and the queue over it, with three requests that may run."""
    driver = make_driver()
    queue = WaitingQueue(driver)
    for name in "abc":
        queue.add_request(FakeRequest(name))
    return driver, queue


def ids(queue: WaitingQueue | EmptyQueue) -> list[str]:
    """Who stands in the queue."""
    return [request.request_id for request in queue]


def test_before_a_step_all_wait_and_none_is_offered(queues: Queues) -> None:
    """`len` counts who waits; `bool` is about the plan, and there is none yet."""
    _, queue = queues
    assert (3, ["a", "b", "c"]) == (len(queue), ids(queue))
    assert not queue


def test_in_a_step_the_plan_is_offered_in_order(queues: Queues) -> None:
    """`peek` and `pop` give the same request, one after the other, until the plan is done."""
    driver, queue = queues
    driver.begin_step(ROOM, 1.0)
    seen = []
    while queue:
        seen.append(queue.peek_request())
        assert seen[-1] is queue.pop_request()
    assert ["a", "b", "c"] == [request.request_id for request in seen]
    assert (0, []) == (len(queue), ids(queue))


def test_what_is_popped_waits_no_more(queues: Queues) -> None:
    """After one pop two wait, and the queue still offers."""
    driver, queue = queues
    driver.begin_step(ROOM, 1.0)
    queue.pop_request()
    assert (2, ["b", "c"]) == (len(queue), ids(queue))
    assert queue


@pytest.mark.parametrize("ask", [WaitingQueue.peek_request, WaitingQueue.pop_request])
def test_without_a_plan_there_is_no_next(
    queues: Queues, ask: Callable[[WaitingQueue], FakeRequest]
) -> None:
    """Asking for one is an IndexError, as vLLM's own queues answer."""
    with pytest.raises(IndexError):
        ask(queues[1])


def test_a_popped_request_may_be_put_back(queues: Queues) -> None:
    """Skipped or preempted, it waits again, is not offered in this step, and goes in the next."""
    driver, queue = queues
    driver.begin_step(ROOM, 1.0)
    request = queue.pop_request()
    queue.prepend_request(request)
    assert (3, "b") == (len(queue), queue.peek_request().request_id)
    driver.end_step()
    assert ["a", "b", "c"] == carry_out(driver, 2.0)[1]


def test_several_may_be_put_back(queues: Queues) -> None:
    """As vLLM does at the end of its loop."""
    driver, queue = queues
    driver.begin_step(ROOM, 1.0)
    queue.prepend_requests([queue.pop_request(), queue.pop_request()])
    driver.end_step()
    assert ["a", "b", "c"] == ids(queue)


def test_an_aborted_request_is_taken_out(queues: Queues) -> None:
    """One or several, they are neither counted nor offered."""
    driver, queue = queues
    first, second, _ = list(queue)
    queue.remove_request(second)
    assert ["a", "c"] == ids(queue)
    queue.remove_requests({first})
    assert ["c"] == ids(queue)
    assert ["c"] == carry_out(driver, 1.0)[1]


class TestEmptyQueue:
    def test_it_is_empty_whatever_waits(self, queues: Queues) -> None:
        """It counts, lists and offers nothing."""
        queue = EmptyQueue(queues[1])
        assert (False, 0, []) == (bool(queue), len(queue), ids(queue))

    @pytest.mark.parametrize(
        "ask", [EmptyQueue.peek_request, EmptyQueue.pop_request], ids=["peek", "pop"]
    )
    def test_there_is_no_next(
        self, queues: Queues, ask: Callable[[EmptyQueue], FakeRequest]
    ) -> None:
        """Asking for one is an IndexError."""
        with pytest.raises(IndexError):
            ask(EmptyQueue(queues[1]))

    def test_what_is_put_in_goes_to_the_lanes(self, queues: Queues) -> None:
        """Skipped, returned or new: one place keeps them all."""
        driver, lanes = queues
        queue = EmptyQueue(lanes)
        queue.add_request(FakeRequest("d"))
        assert ["a", "b", "c", "d"] == ids(lanes)
        driver.begin_step(ROOM, 1.0)
        queue.prepend_request(lanes.pop_request())
        queue.prepend_requests(lanes.pop_request() for _ in range(2))
        driver.end_step()
        assert ["a", "b", "c", "d"] == ids(lanes)

    def test_removing_is_left_to_the_lanes(self, queues: Queues) -> None:
        """vLLM tells both queues of each abort; the second telling changes nothing."""
        _, lanes = queues
        queue = EmptyQueue(lanes)
        request = FakeRequest("x")
        queue.remove_request(request)
        queue.remove_requests([request])
        assert 3 == len(lanes)


@pytest.mark.vllm
@pytest.mark.parametrize("ours", [WaitingQueue, EmptyQueue])
def test_nothing_vllm_asks_of_a_queue_is_missing(ours: type) -> None:
    """Each abstract method of vLLM's RequestQueue is there."""
    theirs = pytest.importorskip("vllm.v1.core.sched.request_queue").RequestQueue
    assert set() == {name for name in theirs.__abstractmethods__ if not hasattr(ours, name)}
