"""The lanes as vLLM's scheduler sees them: its `waiting` queue.

vLLM asks `bool` whether to go on admitting, `peek`s, allocates memory, then `pop`s the same request.
So `bool` answers "the plan has another request for this step" and `len` counts all that wait.
"""

from collections.abc import Iterable, Iterator
from typing import Any

from chameleon_lora.engine_vllm.core.driver import Driver


class WaitingQueue:
    """vLLM's RequestQueue contract over the driver's plan."""

    def __init__(self, driver: Driver) -> None:
        self._driver = driver

    def add_request(self, request: Any) -> None:
        """The request joins its lane, or waits for its adapter; one seen before goes back to its place."""
        self._driver.arrived(request)

    def prepend_request(self, request: Any) -> None:
        """A request comes back: preempted, or skipped in this step."""
        self._driver.returned(request)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """Several come back."""
        for request in requests:
            self._driver.returned(request)

    def peek_request(self) -> Any:
        """The next request of the plan; IndexError if there is none."""
        return self._driver.planned[0]

    def pop_request(self) -> Any:
        """The next request of the plan, which is admitted by that."""
        return self._driver.planned.popleft()

    def remove_request(self, request: Any) -> None:
        """The request is aborted: the policy learns nothing of lengths from it."""
        self._driver.withdrawn(request)

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Requests are aborted, as by `remove_request`; vLLM aborts many in one call."""
        for request in requests:
            self._driver.withdrawn(request)

    def __bool__(self) -> bool:
        return bool(self._driver.planned)

    def __len__(self) -> int:
        return self._driver.num_waiting

    def __iter__(self) -> Iterator[Any]:
        return self._driver.waiting_requests()


class EmptyQueue:
    """vLLM 0.26's second queue, for requests it skipped: always empty, for lanes keep their own."""

    def __init__(self, lanes: WaitingQueue) -> None:
        self._lanes = lanes

    def add_request(self, request: Any) -> None:
        """A request that vLLM would keep here joins its lane."""
        self._lanes.add_request(request)

    def prepend_request(self, request: Any) -> None:
        """One that was skipped goes back to its place in its lane."""
        self._lanes.prepend_request(request)

    def prepend_requests(self, requests: Iterable[Any]) -> None:
        """Those that were skipped go back to their places."""
        self._lanes.prepend_requests(list(requests))

    def peek_request(self) -> Any:
        """IndexError: vLLM asks `bool` first, which says no."""
        raise IndexError("the queue is empty")

    pop_request = peek_request

    def remove_request(self, request: Any) -> None:
        """Nothing to do: the lanes were told."""

    def remove_requests(self, requests: Iterable[Any]) -> None:
        """Nothing to do: the lanes were told."""

    def __bool__(self) -> bool:
        return False

    def __len__(self) -> int:
        return 0

    def __iter__(self) -> Iterator[Any]:
        return iter(())
