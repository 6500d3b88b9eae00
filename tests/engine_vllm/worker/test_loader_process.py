"""LoaderProcess: a process reads, this one has the bytes, and neither outlives the other's end."""

import os
import resource
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

torch = pytest.importorskip("torch")

from chameleon_lora.engine_vllm.messages import LoadAdapter, LoadFailed  # noqa: E402
from chameleon_lora.engine_vllm.worker.loader import Delivery, LoadOrder, ReadAdapter  # noqa: E402
from chameleon_lora.engine_vllm.worker.loader_process import LoaderProcess  # noqa: E402
from chameleon_lora.engine_vllm.worker.packed_adapter import (  # noqa: E402
    PackedAdapter,
    Piece,
    packed_over,
)
from chameleon_lora.policy.plan import Fault  # noqa: E402

HANGS = "hangs"


class MakingReader:
    """Makes adapters of two matrices; the fingerprint is the process that did it."""

    def read(self, command: LoadAdapter) -> ReadAdapter:
        """Filled with its number; a broken one fails, another never comes."""
        if command.name == "broken":
            raise ValueError("rank 64 is above the limit of 16")
        while command.name == HANGS:
            signal.pause()
        columns = 8 + command.adapter_id % 2
        pieces = (
            Piece("q_proj", 0, "a", 4, columns, 0, 16 * columns),
            Piece("q_proj", 0, "b", 4, columns, 256, 16 * columns),
        )
        flat = torch.full((512,), command.adapter_id, dtype=torch.uint8)
        packed = packed_over(flat, command.adapter_id, 4, torch.float32, pieces)
        return ReadAdapter(packed, str(os.getpid()))

    def keep(self, read: ReadAdapter) -> None:
        """Nothing is kept."""


@pytest.fixture
def loader() -> Iterator[LoaderProcess]:
    made = LoaderProcess(MakingReader)
    yield made
    made.close()


def order(adapter_id: int, name: str = "plain") -> LoadAdapter:
    """A command to load from nowhere."""
    return LoadAdapter(adapter_id, name, f"/adapters/{name}")


def delivered(loader: LoaderProcess, count: int) -> list[Delivery]:
    """The next ones."""
    found: list[Delivery] = []
    while len(found) < count:
        found += loader.poll()
    return found


def read_of(delivery: Delivery) -> tuple[PackedAdapter, int]:
    """The adapter, and the process that read it."""
    assert isinstance(delivery.outcome, ReadAdapter)
    packed = delivery.outcome.host_copy
    assert isinstance(packed, PackedAdapter)
    return packed, int(delivery.outcome.fingerprint)


def descriptors() -> int:
    """How many this process has."""
    return len(list(Path("/proc/self/fd").iterdir()))


def test_another_process_reads_and_this_one_has_the_bytes(loader: LoaderProcess) -> None:
    """In order, without a descriptor for each, and adapters of one geometry share their pieces."""
    before = descriptors()
    asked = [loader.submit(order(number)) for number in range(1, 71)]
    deliveries = delivered(loader, len(asked))
    found = [read_of(delivery) for delivery in deliveries]
    assert asked == [delivery.order for delivery in deliveries]
    assert list(range(1, 71)) == [packed.adapter_id for packed, _ in found]
    assert all(bool((packed.flat == packed.adapter_id).all()) for packed, _ in found)
    assert {(4, 512, torch.float32)} == {(p.rank, p.nbytes, p.dtype) for p, _ in found}
    assert [(4, 9), (4, 9)] == [tuple(view.shape) for view in found[0][0].views]
    assert 2 == len({id(packed.pieces) for packed, _ in found})
    (reader,) = {pid for _, pid in found}
    assert os.getpid() != reader
    assert before == descriptors()


def test_the_bytes_outlive_the_process(loader: LoaderProcess) -> None:
    """An adapter is this process's own once it is there."""
    loader.submit(order(7))
    packed, reader = read_of(*delivered(loader, 1))
    loader.close()
    assert not psutil.pid_exists(reader)
    assert bool((packed.flat == 7).all())


def test_a_failing_load_is_an_answer(loader: LoaderProcess) -> None:
    """With the reader's reason; the next load goes on."""
    loader.submit(order(1, "broken"))
    loader.submit(order(2))
    failed, loaded = delivered(loader, 2)
    assert isinstance(failed.outcome, LoadFailed)
    assert "rank 64 is above the limit of 16" in failed.outcome.reason
    assert 2 == read_of(loaded)[0].adapter_id


def test_a_load_that_hangs_holds_up_no_other() -> None:
    """Though nobody asks in that process: it looks by itself."""
    loader = LoaderProcess(MakingReader, stall_s=0.01)
    loader.submit(order(1, HANGS))
    loader.submit(order(2))
    assert 2 == read_of(*delivered(loader, 1))[0].adapter_id
    loader.close()


def test_a_cancelled_load_is_not_delivered(loader: LoaderProcess) -> None:
    """Neither one that waits nor one that has been read meanwhile."""
    gone: list[LoadOrder] = [loader.submit(order(number)) for number in (1, 2)]
    for each in gone:
        loader.cancel(each)
    loader.submit(order(3))
    assert [3] == [read_of(found)[0].adapter_id for found in delivered(loader, 1)]
    assert [] == loader.poll()


def test_when_the_process_ends_its_loads_fail_and_the_next_starts_another(
    loader: LoaderProcess,
) -> None:
    """As when it is killed for want of memory: it is the server's fault, and no step hangs."""
    loader.submit(order(1))
    reader = psutil.Process(read_of(*delivered(loader, 1))[1])
    hung = loader.submit(order(2, HANGS))
    reader.kill()
    (failed,) = delivered(loader, 1)
    assert hung is failed.order
    assert isinstance(failed.outcome, LoadFailed)
    assert (2, Fault.SERVER) == (failed.outcome.adapter_id, failed.outcome.fault)
    loader.submit(order(3))
    packed, other = read_of(*delivered(loader, 1))
    assert 3 == packed.adapter_id
    assert reader.pid != other


def test_an_idle_process_that_ended_costs_no_load(loader: LoaderProcess) -> None:
    """The next one finds out, and starts another."""
    loader.submit(order(1))
    reader = psutil.Process(read_of(*delivered(loader, 1))[1])
    reader.kill()
    while reader.status() != psutil.STATUS_ZOMBIE or reader.num_threads() > 1:
        pass
    loader.submit(order(2))
    assert 2 == read_of(*delivered(loader, 1))[0].adapter_id


def test_a_worker_without_free_descriptors_goes_on(loader: LoaderProcess) -> None:
    """The load fails, by the machine's fault, and not the step that asks for news."""
    limits = resource.getrlimit(resource.RLIMIT_NOFILE)
    loader.submit(order(1))
    free = os.dup(0)
    os.close(free)
    resource.setrlimit(resource.RLIMIT_NOFILE, (free, limits[1]))
    try:
        (failed,) = delivered(loader, 1)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, limits)
    assert isinstance(failed.outcome, LoadFailed)
    assert "Too many open files" in failed.outcome.reason
    assert Fault.SERVER is failed.outcome.fault
    loader.submit(order(2))
    assert 2 == read_of(*delivered(loader, 1))[0].adapter_id


def test_what_a_supervisor_tells_all_is_not_for_it(loader: LoaderProcess) -> None:
    """A server that drains may have adapters to load."""
    loader.submit(order(1))
    reader = read_of(*delivered(loader, 1))[1]
    for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
        os.kill(reader, number)
    loader.submit(order(2))
    assert reader == read_of(*delivered(loader, 1))[1]


def test_it_ends_with_the_worker() -> None:
    """A worker that is killed can tell nobody."""
    program = """
        import os, signal
        from tests.engine_vllm.worker.test_loader_process import *
        made = LoaderProcess(MakingReader)
        made.submit(order(1))
        print(read_of(*delivered(made, 1))[1], flush=True)
        made.submit(order(2, HANGS))
        signal.pause()
    """
    command = [sys.executable, "-c", textwrap.dedent(program)]
    root = Path(__file__).resolve().parents[3]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True, cwd=root) as worker:
        assert worker.stdout is not None
        reader = psutil.Process(int(worker.stdout.readline()))
        worker.kill()
        gone, _alive = psutil.wait_procs([reader], timeout=60)
    assert [reader] == gone
