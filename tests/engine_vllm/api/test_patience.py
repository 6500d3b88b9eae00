"""Work that hangs holds up no other, and no more threads than are allowed."""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import pytest

from chameleon_lora.engine_vllm.api.patience import PatientWork
from chameleon_lora.errors import AdapterTimeoutError

SOON_S = 0.25  # of a busy machine, too, that does not hang


@dataclass
class Disk:
    """Work on names, of which those that begin with x hang until they are let go."""

    done: list[str] = field(default_factory=list)
    let_go: threading.Event = field(default_factory=threading.Event)
    is_hanging: threading.Semaphore = field(default_factory=lambda: threading.Semaphore(0))

    def work(self, name: str) -> str:
        """The name in capitals."""
        if name.startswith("x"):
            self.is_hanging.release()
            self.let_go.wait()
        self.done.append(name)
        return name.upper()


@pytest.fixture
def disk() -> Iterator[Disk]:
    """Whose threads end with the test."""
    disk = Disk()
    yield disk
    disk.let_go.set()


async def found(
    patient: PatientWork, work: Callable[[str], str], names: list[str], at_once: int = 2
) -> list[str]:
    """All that is found."""
    parts = [part async for part in patient.each(work, names, at_once)]
    return [value for part in parts for value in part.values()]


def test_each_name_is_worked_on_in_turn(disk: Disk) -> None:
    """So many at a time, whether they come out even or not."""
    assert ["A", "B", "C"] == asyncio.run(found(PatientWork(), disk.work, list("abc")))
    assert "A" == asyncio.run(PatientWork().one(disk.work, "a"))
    assert [] == asyncio.run(found(PatientWork(), disk.work, []))


def test_others_have_their_turn_between_two_parts(disk: Disk) -> None:
    """As many turns as parts at least, however many names there are."""

    async def count_turns() -> int:
        turns = 0
        work = asyncio.create_task(found(PatientWork(), disk.work, ["a"] * 100, 1))
        while not work.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(count_turns()) >= 100


def test_a_name_on_which_it_hangs_holds_up_no_other(disk: Disk) -> None:
    """It is left where it is; once it has ended, that name is worked on again."""
    patient = PatientWork(patience_s=SOON_S)

    async def work() -> None:
        assert ["A", "B", "C"] == await found(patient, disk.work, ["a", "x", "b", "c"], 4)
        assert {"x"} == patient.hung
        assert ["A"] == await found(patient, disk.work, ["x", "a"])
        with pytest.raises(AdapterTimeoutError, match="'x': its files do not answer"):
            await patient.one(disk.work, "x")
        assert disk.is_hanging.acquire(blocking=False)
        assert not disk.is_hanging.acquire(blocking=False)
        disk.let_go.set()
        while patient.hung:
            await asyncio.sleep(0)
        assert ["X"] == await found(patient, disk.work, ["x"])

    asyncio.run(asyncio.wait_for(work(), 30))


def test_so_many_threads_hang_and_no_more(disk: Disk) -> None:
    """Half of them where it was to be feared; the others are left to names of which nobody knew."""
    patient = PatientWork(lambda name: name.startswith("xx"), SOON_S, most_hung=4)
    feared = [f"xx{number}" for number in range(9)]

    async def work() -> None:
        assert ["A", "B"] == await found(patient, disk.work, ["a", *feared, "b"], 5)
        assert set(feared[:2]) == patient.hung
        names = [f"x{number}" for number in range(4)]
        assert ["A"] == await found(patient, disk.work, ["a", *names, "b"], 5)
        assert 4 == len(patient.hung)
        assert [] == await found(patient, disk.work, ["a"])
        with pytest.raises(AdapterTimeoutError, match="too many others"):
            await patient.one(disk.work, "a")

    asyncio.run(asyncio.wait_for(work(), 30))


def test_what_is_slow_is_found_in_the_end() -> None:
    """A machine may be so busy that nothing ends in time: then more is given, and so much that it does."""
    patient = PatientWork(patience_s=0.0, most_s=600.0)

    async def work() -> int:
        while True:
            with contextlib.suppress(AdapterTimeoutError):
                return await patient.one(lambda _: sum(range(3_000_000)), "a")
            while patient.hung:
                await asyncio.sleep(0)

    assert sum(range(3_000_000)) == asyncio.run(asyncio.wait_for(work(), 60))


def test_what_the_work_raises_is_raised(disk: Disk) -> None:
    """At the part in which it was."""

    def fail(name: str) -> str:
        if name == "bad":
            raise ValueError(name)
        return disk.work(name)

    with pytest.raises(ValueError, match="bad"):
        asyncio.run(found(PatientWork(), fail, ["a", "b", "c", "bad"]))
    assert ["a", "b", "c"] == disk.done
