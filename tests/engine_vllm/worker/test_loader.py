"""Loader: one thread, loads in order, and no load that can end it."""

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

import threading  # noqa: E402

from chameleon_lora.engine_vllm.messages import LoadAdapter  # noqa: E402
from chameleon_lora.engine_vllm.worker.loader import Loader, reason_of  # noqa: E402
from chameleon_lora.engine_vllm.worker.packed_adapter import HostCopy, StockCopy  # noqa: E402


class ScriptedReader:
    """Reads nothing: adapters named `broken` fail, `slow` ones wait for `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.readers: set[int] = set()
        self.kept: list[int] = []
        self.has_kept = threading.Event()

    def read(self, command: LoadAdapter) -> HostCopy:
        """A copy without weights."""
        self.readers.add(threading.get_ident())
        if command.name == "broken":
            raise ValueError("rank 64 is above\nthe limit of 16")
        if command.name == "slow":
            self.go.wait()
        return StockCopy(command.adapter_id, 8, 100, None)

    def keep(self, command: LoadAdapter, host_copy: HostCopy) -> None:
        """Notes the id."""
        assert command.adapter_id == host_copy.adapter_id
        self.kept.append(command.adapter_id)
        self.has_kept.set()


@pytest.fixture
def reader() -> ScriptedReader:
    return ScriptedReader()


@pytest.fixture
def loader(reader: ScriptedReader) -> Iterator[Loader]:
    made = Loader(reader)
    yield made
    reader.go.set()
    made.close()


def order(adapter_id: int, name: str = "plain") -> LoadAdapter:
    """A command to load from nowhere."""
    return LoadAdapter(adapter_id, name, f"/adapters/{name}")


def test_loads_are_delivered_in_order(loader: Loader) -> None:
    """Each delivery carries its ticket and copy, first come, first served."""
    for ticket in range(5):
        loader.submit(ticket, order(10 + ticket))
    deliveries = [loader.wait() for _ in range(5)]
    assert [(t, 10 + t) for t in range(5)] == [(d.ticket, d.adapter_id) for d in deliveries]
    assert all(isinstance(d.outcome, StockCopy) for d in deliveries)


def test_a_failing_load_is_an_answer_and_the_thread_goes_on(loader: Loader) -> None:
    """The reason is one line with name, path and cause; the next load succeeds."""
    loader.submit(0, order(1, "broken"))
    loader.submit(1, order(2))
    expected = "Adapter 'broken' cannot be loaded: rank 64 is above the limit of 16"
    assert expected == loader.wait().outcome
    assert isinstance(loader.wait().outcome, StockCopy)


def test_poll_never_waits(loader: Loader, reader: ScriptedReader) -> None:
    """Nothing while a load is under way."""
    loader.submit(0, order(1, "slow"))
    assert [] == loader.poll()
    reader.go.set()
    assert 1 == loader.wait().adapter_id
    assert [] == loader.poll()


def test_a_cancelled_load_is_skipped(loader: Loader, reader: ScriptedReader) -> None:
    """What is cancelled before its turn is never read, so never delivered."""
    loader.submit(0, order(1, "slow"))
    loader.submit(1, order(2))
    loader.submit(2, order(3))
    loader.cancel(1)
    reader.go.set()
    assert [1, 3] == [loader.wait().adapter_id for _ in range(2)]


def test_a_load_that_hangs_holds_up_no_other(reader: ScriptedReader) -> None:
    """Once it took too long, the loads behind it are read; it is delivered when it ends."""
    loader = Loader(reader, stall_s=0.01)
    loader.submit(0, order(1, "slow"))
    loader.submit(1, order(2))
    loader.submit(2, order(3))
    assert [2, 3] == [loader.wait().adapter_id for _ in range(2)]
    reader.go.set()
    assert 1 == loader.wait().adapter_id
    assert 2 == len(reader.readers)
    loader.close()


def test_polling_is_enough_to_get_past_a_load_that_hangs(reader: ScriptedReader) -> None:
    """A step that only looks finds the others' deliveries in time."""
    loader = Loader(reader, stall_s=0.01)
    loader.submit(0, order(1, "slow"))
    loader.submit(1, order(2))
    found: list[int] = []
    while not found:
        found += [delivery.adapter_id for delivery in loader.poll()]
    assert [2] == found
    reader.go.set()
    loader.close()


def test_one_thread_is_left_when_nothing_hangs(reader: ScriptedReader) -> None:
    """Those that were there for loads that hung end with them."""
    loader = Loader(reader, stall_s=0.01)
    for ticket in range(3):
        loader.submit(ticket, order(ticket, "slow"))
    loader.submit(3, order(3))
    assert 3 == loader.wait().adapter_id
    reader.go.set()
    assert {0, 1, 2} == {loader.wait().adapter_id for _ in range(3)}
    loader.submit(4, order(4))
    assert 4 == loader.wait().adapter_id
    while 1 < len(loader._threads):
        assert [] == loader.poll()
    loader.close()


def test_a_load_that_hangs_does_not_hold_up_the_end(reader: ScriptedReader) -> None:
    """Closing gives up waiting for it."""
    loader = Loader(reader)
    loader.submit(0, order(1, "slow"))
    loader.close()
    assert [] == loader.poll()
    reader.go.set()


def test_copies_are_kept_when_no_load_waits(loader: Loader, reader: ScriptedReader) -> None:
    """Writing for later never delays a load that is due: both are read before either is kept."""
    loader.submit(0, order(1, "slow"))
    loader.submit(1, order(2))
    reader.go.set()
    deliveries = [loader.wait(), loader.wait()]
    assert reader.has_kept.wait(timeout=30)
    assert [1, 2] == [delivery.adapter_id for delivery in deliveries]
    loader.close()
    assert [1, 2] == reader.kept


@pytest.mark.parametrize(
    ("error", "text"),
    [
        (FileNotFoundError("no folder /x"), "no folder /x"),
        (StopIteration(), "it has no LoRA weights"),
        (KeyError("r"), "its adapter_config.json or weights lack 'r'"),
        (RuntimeError(""), "RuntimeError"),
        (ValueError("a" * 1000), "a" * 400 + " ..."),
    ],
)
def test_reasons_are_one_readable_line(error: Exception, text: str) -> None:
    """Every cause becomes one line of bounded length that names the adapter."""
    expected = f"Adapter 'plain' cannot be loaded: {text}"
    assert expected == reason_of(order(1), error)
