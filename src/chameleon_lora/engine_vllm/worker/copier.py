"""Moves bytes into the KV cache beside running steps.

A thread does the work, as its Python would hold up a step. On CUDA it issues the copies on a stream
of its own, ordered against the steps' stream by events: no thread waits for the device.
"""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Generic, Protocol, TypeVar

import torch

T = TypeVar("T")
T_co = TypeVar("T_co", covariant=True)


class CopyJob(Protocol[T_co]):
    """A copy that was started, until somebody asks for its result."""

    def is_done(self) -> bool:
        """Whether it has ended, well or not; never waits."""
        ...

    def try_join(self) -> bool:
        """Whether what the calling thread issues from now on finds it ended; never waits."""
        ...

    def end(self) -> None:
        """Afterwards, what the calling thread issues is not written over by it.

        Cancels it if it has not begun, waits for it otherwise.
        """
        ...

    def result(self) -> T_co:
        """What the work answered; raises what it raised. Call only once it has ended."""
        ...


class Copier(Protocol):
    """Who does the copies, one after the other."""

    def start(self, work: Callable[[], T]) -> CopyJob[T]:
        """Begins it after all that the calling thread has issued so far."""
        ...

    def close(self) -> None:
        """Waits for the copies under way and ends the thread."""
        ...


class ThreadJob(Generic[T]):
    """A copy in host memory: done when its function has returned."""

    def __init__(self, future: Future[T]) -> None:
        self._future = future

    def is_done(self) -> bool:
        return self._future.done()

    def try_join(self) -> bool:
        return self._future.done()

    def end(self) -> None:
        if not self._future.cancel():
            self._future.exception()  # waits

    def result(self) -> T:
        return self._future.result()


class ThreadCopier:
    """Copies one after the other on a thread of its own; the work needs no GPU stream."""

    def __init__(self, prepare_thread: Callable[[], None] = lambda: None) -> None:
        self._thread = ThreadPoolExecutor(1, "chameleon-copier", prepare_thread)

    def start(self, work: Callable[[], T]) -> CopyJob[T]:
        return ThreadJob(self._thread.submit(_run, work))

    def close(self) -> None:
        self._thread.shutdown()


class StreamJob(Generic[T]):
    """A copy on a side stream: issued by a thread, done when the event behind it is."""

    def __init__(self, issue: CopyJob[T], event: Any) -> None:
        self._issue = issue
        self._event = event

    def is_done(self) -> bool:
        return self._issue.is_done() and bool(self._event.query())

    def try_join(self) -> bool:
        if not self._issue.is_done():
            return False
        torch.cuda.current_stream().wait_event(self._event)
        return True

    def end(self) -> None:
        self._issue.end()
        torch.cuda.current_stream().wait_event(self._event)  # nothing if it was never recorded

    def result(self) -> T:
        return self._issue.result()


class StreamCopier:
    """Copies from pinned host memory to a CUDA device, on a stream beside the steps' own."""

    def __init__(
        self, device: torch.device, prepare_thread: Callable[[], None] = lambda: None
    ) -> None:
        self._thread = ThreadCopier(prepare_thread)
        self._stream = torch.cuda.Stream(device)

    def start(self, work: Callable[[], T]) -> CopyJob[T]:
        # A step in flight may still write the blocks that the scheduler took from its requests.
        issued = torch.cuda.current_stream().record_event()
        done = torch.cuda.Event()

        def work_on_stream() -> T:
            with torch.cuda.stream(self._stream):
                self._stream.wait_event(issued)
                try:
                    return work()
                finally:
                    done.record(self._stream)

        return StreamJob(self._thread.start(work_on_stream), done)

    def close(self) -> None:
        self._thread.close()


def copier_for(device: torch.device, prepare_thread: Callable[[], None]) -> Copier:
    """The one for slots and KV cache on this device."""
    if device.type == "cuda":
        return StreamCopier(device, prepare_thread)
    return ThreadCopier(prepare_thread)


def _run(work: Callable[[], T]) -> T:
    with torch.inference_mode():  # of this thread: vLLM's tensors may be written in no other
        return work()
