"""Loader: one thread, loads in order, and no load that can end it."""

from collections.abc import Iterator

import pytest

torch = pytest.importorskip("torch")

import copy  # noqa: E402
import threading  # noqa: E402
import weakref  # noqa: E402

from chameleon_lora.engine_vllm.messages import LoadAdapter, LoadFailed  # noqa: E402
from chameleon_lora.engine_vllm.worker.loader import Delivery, Loader, ReadAdapter, failure_of  # noqa: E402
from chameleon_lora.engine_vllm.worker.packed_adapter import StockCopy  # noqa: E402
from chameleon_lora.errors import AdapterInvalidError, AdapterUnfitError  # noqa: E402
from chameleon_lora.policy.plan import Fault  # noqa: E402


class ScriptedReader:
    """Reads nothing: adapters named `broken` fail, `slow` ones wait for `go`."""

    def __init__(self) -> None:
        self.go = threading.Event()
        self.readers: set[int] = set()
        self.kept: list[int] = []
        self.has_kept = threading.Event()

    def read(self, command: LoadAdapter) -> ReadAdapter:
        """A copy without weights."""
        self.readers.add(threading.get_ident())
        if command.name == "broken":
            raise ValueError("rank 64 is above\nthe limit of 16")
        if command.name == "slow":
            self.go.wait()
        return ReadAdapter(StockCopy(command.adapter_id, 8, 100, None), "1")

    def keep(self, read: ReadAdapter) -> None:
        """Notes the id."""
        self.kept.append(read.host_copy.adapter_id)
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


def take(loader: Loader, count: int) -> list[Delivery]:
    """The next deliveries, once they are there."""
    found: list[Delivery] = []
    while len(found) < count:
        found += loader.poll()
    return found


def caused(error: Exception, cause: Exception) -> Exception:
    """The error, raised from this one."""
    error = copy.copy(error)
    error.__cause__ = cause
    return error


def id_of(delivery: Delivery) -> int:
    """Whose it is."""
    return delivery.order.command.adapter_id


def test_loads_are_delivered_in_order(loader: Loader) -> None:
    """Each delivery carries its order and copy, first come, first served."""
    orders = [loader.submit(order(number)) for number in range(5)]
    deliveries = take(loader, 5)
    assert orders == [delivery.order for delivery in deliveries]
    assert all(isinstance(delivery.outcome, ReadAdapter) for delivery in deliveries)


def test_a_failing_load_is_an_answer_and_the_thread_goes_on(loader: Loader) -> None:
    """The reason is one line with name, path and cause; the next load succeeds."""
    loader.submit(order(1, "broken"))
    loader.submit(order(2))
    expected = "Adapter 'broken' cannot be loaded: rank 64 is above the limit of 16"
    failed, loaded = take(loader, 2)
    assert LoadFailed(1, expected, Fault.SERVER) == failed.outcome
    assert isinstance(loaded.outcome, ReadAdapter)


def test_poll_never_waits(loader: Loader, reader: ScriptedReader) -> None:
    """Nothing while a load is under way."""
    loader.submit(order(1, "slow"))
    assert [] == loader.poll()
    reader.go.set()
    assert 1 == id_of(take(loader, 1)[0])
    assert [] == loader.poll()


def test_a_cancelled_load_is_skipped(loader: Loader, reader: ScriptedReader) -> None:
    """What is cancelled before its turn is never read, so never delivered."""
    loader.submit(order(1, "slow"))
    loader.submit(order(2)).is_cancelled = True
    loader.submit(order(3))
    reader.go.set()
    assert [1, 3] == [id_of(found) for found in take(loader, 2)]


def test_cancelled_loads_leave_nothing_behind(loader: Loader) -> None:
    """However many were begun and called off: whoever asks for memory finds no trace of them."""
    orders = []
    for _ in range(200):
        begun = loader.submit(order(1))
        take(loader, 1)
        begun.is_cancelled = True
        orders.append(weakref.ref(begun))
        del begun
    loader.close()
    assert [None] * 200 == [order() for order in orders]


def test_a_load_that_hangs_holds_up_no_other(reader: ScriptedReader) -> None:
    """Once it took too long, the loads behind it are read; it is delivered when it ends."""
    loader = Loader(reader, stall_s=0.01)
    loader.submit(order(1, "slow"))
    loader.submit(order(2))
    loader.submit(order(3))
    assert [2, 3] == [id_of(found) for found in take(loader, 2)]
    reader.go.set()
    assert 1 == id_of(take(loader, 1)[0])
    assert 2 == len(reader.readers)
    loader.close()


def test_polling_is_enough_to_get_past_a_load_that_hangs(reader: ScriptedReader) -> None:
    """A step that only looks finds the others' deliveries in time."""
    loader = Loader(reader, stall_s=0.01)
    loader.submit(order(1, "slow"))
    loader.submit(order(2))
    found: list[int] = []
    while not found:
        found += [id_of(delivery) for delivery in loader.poll()]
    assert [2] == found
    reader.go.set()
    loader.close()


def test_one_thread_is_left_when_nothing_hangs(reader: ScriptedReader) -> None:
    """Those that were there for loads that hung end with them."""
    loader = Loader(reader, stall_s=0.01)
    for ticket in range(3):
        loader.submit(order(ticket, "slow"))
    loader.submit(order(3))
    assert 3 == id_of(take(loader, 1)[0])
    reader.go.set()
    assert {0, 1, 2} == {id_of(found) for found in take(loader, 3)}
    loader.submit(order(4))
    assert 4 == id_of(take(loader, 1)[0])
    while 1 < len(loader._threads):
        assert [] == loader.poll()
    loader.close()


def test_a_load_that_hangs_does_not_hold_up_the_end(reader: ScriptedReader) -> None:
    """Closing gives up waiting for it."""
    loader = Loader(reader)
    loader.submit(order(1, "slow"))
    loader.close()
    assert [] == loader.poll()
    reader.go.set()


def test_copies_are_kept_when_no_load_waits(loader: Loader, reader: ScriptedReader) -> None:
    """Writing for later never delays a load that is due: both are read before either is kept."""
    loader.submit(order(1, "slow"))
    loader.submit(order(2))
    reader.go.set()
    deliveries = take(loader, 2)
    assert reader.has_kept.wait(timeout=30)
    assert [1, 2] == [id_of(delivery) for delivery in deliveries]
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
    assert expected == failure_of(order(1), error).reason


UNFIT, INVALID = AdapterUnfitError("its weights hold nan"), AdapterInvalidError("no header")


@pytest.mark.parametrize(
    ("error", "announced", "fault"),
    [
        (UNFIT, "1", Fault.CONTENT),
        (UNFIT, None, Fault.FILES),  # other files may come to lie there under the same name
        (INVALID, "1", Fault.FILES),
        (caused(INVALID, OSError(5, "EIO")), "1", Fault.SERVER),
        (caused(AdapterInvalidError("gone"), FileNotFoundError(2, "gone")), "1", Fault.FILES),
        (OSError(28, "no space left"), "1", Fault.SERVER),
        (MemoryError(), "1", Fault.SERVER),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory"), "1", Fault.SERVER),
        (ValueError("who knows"), "1", Fault.SERVER),
    ],
    ids=str,
)
def test_what_may_pass_is_not_the_contents_fault(
    error: Exception, announced: str | None, fault: Fault
) -> None:
    """Only what the very files that were announced can never become is for good."""
    command = LoadAdapter(1, "plain", "/adapters/plain", fingerprint=announced)
    assert fault is failure_of(command, error).fault
