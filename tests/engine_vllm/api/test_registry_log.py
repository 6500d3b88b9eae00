"""What the operator is told of a folder of adapters: lines in the log, state and metrics."""

import asyncio
import gc
import os
import shutil
from pathlib import Path

import pytest
from safetensors.numpy import load_file

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.engine_vllm.api.shutdown import SHUTTING_DOWN
from tests.engine_vllm.served_folder import BASE, MAX_RANK, ServedFolder

pytestmark = pytest.mark.vllm


@pytest.fixture
def served(tmp_path: Path) -> ServedFolder:
    """A folder that holds the adapters a and b."""
    pytest.importorskip("vllm")
    served = ServedFolder(tmp_path / "adapters")
    served.add("a")
    served.add("b", rank=4)
    return served


@pytest.fixture
def started(served: ServedFolder, caplog: pytest.LogCaptureFixture) -> None:
    """The folder is followed, and what the start said forgotten."""
    asyncio.run(served.registry.start())
    caplog.clear()


@pytest.mark.usefixtures("started")
def test_each_change_is_a_line(served: ServedFolder, caplog: pytest.LogCaptureFixture) -> None:
    """Added, replaced, refused with its reason, mended, removed; and nothing while nothing changes."""
    told = []
    for change in (
        lambda: served.add("c"),
        lambda: served.add("c", rank=4, seed=1),
        lambda: (served.root / "c" / CONFIG_NAME).write_text("{"),
        lambda: served.add("c"),
        lambda: shutil.rmtree(served.root / "c"),
    ):
        change()
        served.refresh_all()
        served.refresh_all()
        told.append([record.getMessage().partition(":")[0] for record in caplog.records])
        caplog.clear()
    added, removed = "Adapter 'c' added", "Adapter 'c' removed"
    refused = "Adapter not served"
    assert [[added], ["Adapter 'c' replaced"], [refused], [added], [removed]] == told


def test_many_adapters_are_each_told_once_and_one_line(
    served: ServedFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """Five hundred that are there at the start, and all go again, with the files of one."""
    names = [f"many-{number:03d}" for number in range(500)]
    for name in names:
        shutil.copytree(served.root / "a", served.root / name, copy_function=os.link)
    asyncio.run(served.registry.start())
    told = served.told()
    assert {"announce"} == {verb for verb, _ in told}
    assert ["a", "b", *names] == [name for _, some in told for name in some]
    (record,) = caplog.records
    assert record.getMessage().startswith("Chameleon serves 502 adapters of ")
    for name in names:
        shutil.rmtree(served.root / name)
    served.refresh_all()  # so many at once may be a disk that is away
    served.refresh_all()
    assert [("withdraw", names)] == served.told()


@pytest.mark.usefixtures("started")
def test_requests_add_no_line(served: ServedFolder, caplog: pytest.LogCaptureFixture) -> None:
    """However often a broken, a half-copied or an unknown adapter is asked for."""
    served.add("broken")
    (served.root / "broken" / CONFIG_NAME).write_text("{")
    (served.root / "half").mkdir()
    (served.root / "half" / CONFIG_NAME).write_text("{")
    for _ in range(5):
        for name in ("broken", "half", "none"):
            served.refresh(name)
    (record,) = caplog.records
    assert "adapter 'broken': " in record.getMessage()


@pytest.mark.usefixtures("started")
def test_half_a_folder_that_goes_is_forgotten(served: ServedFolder) -> None:
    """No page tells of it any more, and another adapter of its name is let in and stays."""
    (served.root / "half").mkdir()
    (served.root / "half" / CONFIG_NAME).write_text("{")
    served.refresh("half")
    assert served.registry.refusals.why("half")
    served.models.lora_requests["half"] = object()  # loaded by request, from elsewhere
    assert served.registry.refusals.why("half") is None
    shutil.rmtree(served.root / "half")
    served.add("d")
    served.refresh_all()
    assert ({}, True) == (served.registry.refusals.all, "half" in served.models.lora_requests)


@pytest.mark.usefixtures("started")
def test_a_folder_meant_for_an_adapter_is_told_once_it_stays_so(
    served: ServedFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """Pickled, nested, linked, named as the base model or not to be printed; a copy under way is none."""
    served.add("task/checkpoint-500")
    served.add("task/checkpoint-1000")
    (served.root / "link").symlink_to(served.root.parent)
    served.add("bin")
    weights = served.root / "bin" / WEIGHTS_NAME
    weights.rename(weights.with_name("adapter_model.bin"))
    served.add(BASE)
    served.add("line\nend")
    served.add(b"\xff".decode(errors="surrogateescape"))
    (served.root / "empty").mkdir()
    served.refresh_all()
    assert [] == caplog.records
    served.refresh_all()
    served.refresh_all()
    assert "'checkpoint-1000'" in str(served.registry.refusals.why("task"))
    assert served.registry.refusals.why(BASE) is None  # its requests are the base model's
    why = served.registry.refusals.all
    for name, reason in (
        ("task", "'checkpoint-1000'"),
        ("link", "leads out"),
        ("bin", "adapter_model.bin is pickled"),
        (BASE, "the base model has that name"),
        (r"'line\nend'", "printable"),
        (r"'\udcff'", "printable"),
    ):
        assert reason in why.pop(name)
    assert {} == why
    assert 6 == len(caplog.records)
    assert all(record.getMessage().isprintable() for record in caplog.records)


@pytest.mark.usefixtures("started")
def test_trouble_that_lasts_is_told_once_and_so_is_its_end(
    served: ServedFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """A folder that cannot be listed does not fill the log."""
    away = served.root.rename(served.root.with_name("away"))
    for _ in range(3):
        served.refresh_all()
    away.rename(served.root)
    for _ in range(3):
        served.refresh_all()
    first, last = (record.getMessage() for record in caplog.records)
    assert "cannot be listed" in first
    assert "works again" in last


def test_the_start_says_what_is_served_and_what_is_not(
    served: ServedFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """One line, after those with reasons; it names ten of the refused."""
    for number in range(12):
        served.add(f"wide-{number:02}", rank=MAX_RANK + 1)
    asyncio.run(served.registry.start())
    message = caplog.records[-1].getMessage()
    assert (
        f"Chameleon serves 2 adapters of {str(served.root)!r}; 12 refused ('wide-00', " in message
    )
    assert "'wide-09' and 2 more; reasons above" in message
    assert 13 == len(caplog.records)


def test_pickled_weights_are_converted_where_that_is_set(tmp_path: Path) -> None:
    """At the next look, once; one that is refused is so with its own reason, until its files change."""
    torch = pytest.importorskip("torch")
    served = ServedFolder(tmp_path / "adapters", converts_bin=True)
    for name in ("a", "hostile"):
        served.add(name)
        weights = served.root / name / WEIGHTS_NAME
        tensors = {key: torch.from_numpy(value) for key, value in load_file(weights).items()}
        torch.save(tensors if name == "a" else [tensors], weights.with_suffix(".bin"))
        weights.unlink()
    served.refresh_all()
    assert [("announce", ["a"])] == served.told()
    assert {"hostile"} == served.registry.refusals.refused.keys()
    assert (
        "adapter 'hostile': adapter_model.bin is no file"
        in served.registry.refusals.refused["hostile"]
    )
    served.refresh_all()
    assert (served.root / "a" / WEIGHTS_NAME).is_file()
    assert {"hostile"} == served.registry.refusals.refused.keys()
    unset = ServedFolder(served.root)
    unset.refresh_all()
    assert "serving.converts_bin" in unset.registry.refusals.unfit["hostile"]


def test_a_look_that_fails_because_the_server_ends_is_no_trouble(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The engine takes no more calls: nothing is in the log, and the watch ends."""
    served = ServedFolder(tmp_path / "adapters", scan_s=0.01)
    served.add("a")

    async def end() -> None:
        await served.registry.start()
        served.engine.is_down = True
        served.engine.was_asked.clear()
        served.add("b")
        setattr(served.models.engine_client, SHUTTING_DOWN, True)
        watching = served.registry._watching
        assert watching is not None
        await asyncio.wait_for(watching, 10)

    asyncio.run(end())
    assert [] == [record for record in caplog.records if record.levelname == "ERROR"]


def test_a_read_that_fails_after_who_asked_has_gone_is_told_by_nobody(served: ServedFolder) -> None:
    """Not by asyncio either, whose word for it is an error with a traceback."""
    told: list[object] = []

    async def ask() -> None:
        asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
        await served.registry._refresh_all()
        served.engine.is_down = True
        asking = asyncio.create_task(served.registry.refresh("a"))
        while not served.registry._reading:
            await asyncio.sleep(0)
        reading = served.registry._reading["a"]
        asking.cancel()
        await asyncio.wait([reading])
        del reading
        gc.collect()

    asyncio.run(ask())
    assert [] == told
