"""A folder of very many adapters: what each look costs, and that nothing holds others up."""

import asyncio
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.engine_vllm.api import registry
from chameleon_lora.engine_vllm.api.patience import PatientWork
from chameleon_lora.errors import AdapterTimeoutError, AdapterUnreadableError
from tests.adapters.failing_files import HungDisk
from tests.engine_vllm.served_folder import ServedFolder, opened_by

pytestmark = pytest.mark.vllm
SOON_S = 0.25


@pytest.fixture
def served(tmp_path: Path) -> ServedFolder:
    """A folder that holds the adapter a, and is followed."""
    pytest.importorskip("vllm")
    served = ServedFolder(tmp_path / "adapters")
    served.add("a")
    asyncio.run(served.registry.start())
    served.told()
    return served


@pytest.fixture(params=["stat", "open"])
def hanging(
    served: ServedFolder, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[HungDisk]:
    """For the adapter x from now on, when its files' status or their bytes are asked for."""
    disk = HungDisk(monkeypatch, lambda path: "x" in path.parts, request.param)
    served.registry._patient = PatientWork(patience_s=SOON_S)
    yield disk
    disk.set()


def add_many(served: ServedFolder, count: int) -> list[str]:
    """So many copies of the adapter a."""
    names = [f"c-{number:03}" for number in range(count)]
    for name in names:
        shutil.copytree(served.root / "a", served.root / name)
    return names


def test_an_idle_look_opens_nothing(served: ServedFolder) -> None:
    """Not even the folder itself."""
    served.refresh_all()
    assert [] == opened_by(served.refresh_all)
    served.add("b")
    served.refresh_all()
    assert [("announce", ["b"])] == served.told()


def test_new_folders_are_offered_a_few_at_a_time(served: ServedFolder) -> None:
    """The engine, too, is told of no more at once; others have their turn in between."""
    names = add_many(served, 5 * registry.CHECKED)

    async def count_turns() -> int:
        turns = 0
        look = asyncio.create_task(served.registry._refresh_all())
        while not look.done():
            await asyncio.sleep(0)
            turns += 1
        return turns

    assert asyncio.run(count_turns()) >= 5
    told = [announced for _, announced in served.told()]
    assert [registry.CHECKED] * 5 == [len(announced) for announced in told]
    assert names == [name for announced in told for name in announced]


def test_a_request_for_one_does_not_wait_for_the_others(
    served: ServedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is offered while the look at all is still under way."""
    add_many(served, 3 * registry.CHECKED)
    served.add("z")
    disk = HungDisk(monkeypatch, lambda path: path.parent.name.startswith("c-"), "open")

    async def ask() -> None:
        look = asyncio.create_task(served.registry._refresh_all())
        await served.registry.refresh("z")
        assert "z" in served.models.lora_requests
        assert not look.done()
        disk.set()
        await look

    asyncio.run(asyncio.wait_for(ask(), 30))
    assert 3 * registry.CHECKED + 2 == len(served.models.lora_requests)


def test_a_hung_folder_delays_no_other(
    served: ServedFolder, hanging: HungDisk, caplog: pytest.LogCaptureFixture
) -> None:
    """The log and the pages say so; once its disk answers, it is served. One thread waits for it."""
    for name in ("x", "b", "z"):
        served.add(name)

    async def look() -> None:
        await served.registry._refresh_all()
        assert {"a", "b", "z"} == set(served.models.lora_requests)
        for _ in range(5):
            await served.registry._refresh_all()
            with pytest.raises(
                AdapterUnreadableError, match="adapter 'x': its files do not answer"
            ):
                await served.registry.refresh("x")
        assert 1 == hanging.asked
        assert "do not answer" in str(served.registry.refusals.why("x"))
        assert ["x"] == list(served.registry.refusals.all)
        hanging.set()
        while served.registry._patient.hung:
            await asyncio.sleep(0)
        await served.registry._refresh_all()

    asyncio.run(asyncio.wait_for(look(), 60))
    assert "x" in served.models.lora_requests
    assert {} == served.registry.refusals.all
    refused = [r.getMessage() for r in caplog.records if "not served" in r.getMessage()]
    assert 1 == len(refused)
    assert "adapter 'x'" in refused[0]


@pytest.mark.parametrize("hanging", ["open"], indirect=True)
def test_too_many_hung_folders_make_no_other_unknown(
    served: ServedFolder, hanging: HungDisk
) -> None:
    """Whoever asks for a new adapter, or for one of no folder, is told to ask again; what is known is served."""
    served.registry._patient = PatientWork(patience_s=SOON_S, most_hung=2)
    for name in ("x1", "x2", "b"):
        served.add(name)
    hanging.is_there = lambda path: path.parent.name.startswith("x")

    async def ask() -> None:
        await asyncio.gather(*map(served.registry.refresh, ("x1", "x2")), return_exceptions=True)
        assert {"x1", "x2"} == served.registry._patient.hung
        for name in ("b", "nobody"):
            with pytest.raises(AdapterTimeoutError, match=f"{name}.*too many others"):
                await served.registry.refresh(name)
        await served.registry.refresh("a")
        assert "a" in served.models.lora_requests
        hanging.set()
        while served.registry._patient.hung:
            await asyncio.sleep(0)
        for name in ("b", "x1", "nobody"):
            await served.registry.refresh(name)

    asyncio.run(asyncio.wait_for(ask(), 60))
    assert {"a", "b", "x1"} == served.models.lora_requests.keys()


def test_a_check_that_is_slow_is_no_unknown_adapter(
    served: ServedFolder, hanging: HungDisk
) -> None:
    """Though it ends just when that is looked for: whoever asked is told to ask again, and that lets it in."""
    served.add("x")

    async def ask() -> None:
        asking = asyncio.create_task(served.registry.refresh("x"))
        while "x" not in served.registry._patient.hung:
            await asyncio.sleep(0)
        hanging.set()
        with pytest.raises(AdapterTimeoutError):
            await asking
        while served.registry._patient.hung:
            await asyncio.sleep(0)
        await served.registry.refresh("x")

    asyncio.run(asyncio.wait_for(ask(), 60))
    assert "x" in served.models.lora_requests


def test_an_adapter_whose_disk_hangs_stays_offered(served: ServedFolder, hanging: HungDisk) -> None:
    """As long as nobody knows that it went."""
    hanging.set()
    served.add("x")
    served.refresh_all()
    hanging.clear()
    (served.root / "x" / CONFIG_NAME).touch()
    served.refresh_all()
    served.refresh_all()
    assert "x" in served.models.lora_requests
    assert {} == served.registry.refusals.all


def test_a_root_that_hangs_is_told_and_asked_once(
    served: ServedFolder, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """What is offered stays offered."""
    disk = HungDisk(monkeypatch, served.root.__eq__)
    served.registry._patient = PatientWork(patience_s=SOON_S)

    async def look() -> None:
        for _ in range(3):
            await served.registry._refresh_all()
        assert ["a"] == list(served.models.lora_requests)
        disk.set()
        while served.registry._patient.hung:
            await asyncio.sleep(0)
        await served.registry._refresh_all()

    asyncio.run(asyncio.wait_for(look(), 60))
    told = [
        record.getMessage() for record in caplog.records if "adapter folder" in record.getMessage()
    ]
    assert 1 == len(told)
    assert "hangs" in told[0]
