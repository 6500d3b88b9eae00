"""ThreadCopier: copies one after the other beside their caller. Streams need a GPU."""

import functools
import threading
from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

from chameleon_lora.engine_vllm.worker.copier import (  # noqa: E402
    StreamCopier,
    ThreadCopier,
    copier_for,
)


@pytest.fixture
def copier() -> Iterator[ThreadCopier]:
    made = ThreadCopier()
    yield made
    made.close()


def test_a_copy_runs_beside_its_caller(copier: ThreadCopier) -> None:
    """It is not done, and cannot be joined, before its work has returned."""
    go = threading.Event()
    job = copier.start(go.wait)
    assert (False, False) == (job.is_done(), job.try_join())
    go.set()
    assert job.result()
    assert (True, True) == (job.is_done(), job.try_join())


def test_copies_are_made_in_their_order(copier: ThreadCopier) -> None:
    """First come, first served."""
    done: list[int] = []
    jobs = [copier.start(functools.partial(done.append, number)) for number in range(5)]
    jobs[-1].result()
    assert [0, 1, 2, 3, 4] == done


def test_ending_waits_for_a_copy_that_has_begun(copier: ThreadCopier) -> None:
    """Afterwards it writes nothing."""
    begun, go = threading.Event(), threading.Event()
    written: list[int] = []

    def work() -> None:
        begun.set()
        go.wait()
        written.append(1)

    job = copier.start(work)
    begun.wait()
    threading.Timer(0.05, go.set).start()
    job.end()
    assert ([1], True) == (written, job.is_done())
    job.end()


def test_ending_cancels_a_copy_that_has_not_begun(copier: ThreadCopier) -> None:
    """It never runs, and its caller waits for no other."""
    go = threading.Event()
    written: list[int] = []
    first = copier.start(go.wait)
    second = copier.start(lambda: written.append(2))
    second.end()
    assert (False, True) == (first.is_done(), second.is_done())
    go.set()
    copier.start(lambda: None).result()
    assert [] == written


def test_a_failed_copy_says_why_and_ends_nothing_else(copier: ThreadCopier) -> None:
    """Its result raises; the next copy is made."""

    def fail() -> None:
        raise ValueError("no such page")

    job = copier.start(fail)
    job.end()
    assert job.is_done()
    with pytest.raises(ValueError, match="no such page"):
        job.result()
    assert 7 == copier.start(lambda: 7).result()


def test_the_thread_is_prepared_once() -> None:
    """As the loader's is."""
    names: list[str] = []
    copier = ThreadCopier(lambda: names.append(threading.current_thread().name))
    copier.start(lambda: None).result()
    copier.start(lambda: None).result()
    copier.close()
    assert 1 == len(names)
    assert threading.current_thread().name not in names


def test_vllms_tensors_can_be_written_in_the_thread(copier: ThreadCopier) -> None:
    """Those made in inference mode refuse to be written outside of it."""
    with torch.inference_mode():
        made = torch.zeros(4)
    copier.start(lambda: made.fill_(1.0)).result()
    assert [1.0] * 4 == made.tolist()


def test_host_memory_needs_no_stream() -> None:
    """The copier fits the device."""
    copier = copier_for(torch.device("cpu"), lambda: None)
    assert isinstance(copier, ThreadCopier)
    copier.close()


@pytest.mark.gpu
def test_a_stream_carries_copies_to_the_device() -> None:
    """The bytes arrive, after what the caller issued before and before what it issues next."""
    if not torch.cuda.is_available():
        pytest.skip("needs CUDA")
    device = torch.device("cuda")
    copier = StreamCopier(device)
    source = torch.arange(1 << 24, dtype=torch.int64, pin_memory=True)
    target = torch.zeros(1 << 24, dtype=torch.int64, device=device)
    for _ in range(100):
        target.fill_(-1)
    job = copier.start(lambda: target.copy_(source, non_blocking=True))
    job.end()
    found = target.clone()
    assert torch.equal(source, found.cpu())
    assert job.is_done()
    copier.close()
