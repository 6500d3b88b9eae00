"""Disks that fail or go away cost a look, never an adapter."""

import asyncio
import errno
import os
import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.adapters import AdapterFolder
from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.looks import FREE_CHANGES, MOST_LOOKS
from chameleon_lora.engine_vllm.api.patience import PatientWork
from chameleon_lora.engine_vllm.api.registry import REGISTRY, AdapterRegistry
from chameleon_lora.engine_vllm.api.serving import explaining
from chameleon_lora.engine_vllm.sources import resolved
from chameleon_lora.errors import AdapterError, AdapterNotFoundError, AdapterUnreadableError
from tests.adapters.failing_files import failing
from tests.adapters.rewriting import rewrite, wait_for_tick
from tests.engine_vllm.served_folder import NEVER_S, ServedFolder, opened_by

pytestmark = pytest.mark.vllm

ERRORS = ("EIO", "ESTALE", "EMFILE", "ENFILE", "EACCES", "ETIMEDOUT")


@pytest.fixture
def served(tmp_path: Path) -> ServedFolder:
    """A folder with the adapters a, b and c, which are offered; a was asked for."""
    pytest.importorskip("vllm")
    served = ServedFolder(tmp_path / "adapters")
    for name in "abc":
        served.add(name)
    served.refresh_all()
    served.refresh("a")
    served.told()
    return served


@pytest.mark.parametrize("file", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("error", ERRORS)
def test_one_failing_look_takes_no_adapter_out(
    served: ServedFolder, caplog: pytest.LogCaptureFixture, file: str, error: str
) -> None:
    """The former offer stays, the log says why once, and the next look that can read finds the change."""
    path, weights = served.root / "a" / file, served.root / "a" / WEIGHTS_NAME
    wait_for_tick(weights)
    rewrite(weights, "in place")
    with failing(path, getattr(errno, error)):
        served.refresh_all()
        served.refresh_all()
    assert ([], {}) == (served.told(), served.registry.refusals.all)
    (line,) = (record.getMessage() for record in caplog.records)
    assert f"Adapter stays what it was: adapter 'a': {file} cannot be read" in line
    served.refresh_all()
    assert [("announce", ["a"])] == served.told()


@pytest.mark.parametrize("error", ERRORS)
def test_a_new_adapter_that_cannot_be_read_is_told_and_tried_again(
    served: ServedFolder, caplog: pytest.LogCaptureFixture, error: str
) -> None:
    """Nobody has to touch it."""
    served.add("d")
    with failing(served.root / "d" / WEIGHTS_NAME, getattr(errno, error)):
        served.refresh_all()
        served.refresh_all()
        assert "cannot be read" in served.registry.refusals.refused["d"]
    assert 1 == len(caplog.records)
    served.refresh_all()
    assert ([("announce", ["d"])], {}) == (served.told(), served.registry.refusals.refused)


@pytest.mark.parametrize("file", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("error", ERRORS)
def test_a_request_for_what_cannot_be_read_is_no_bad_request(
    served: ServedFolder, error: str, file: str
) -> None:
    """It is told what fails, by an error after which clients ask again; the next one that can be read is let in."""
    served.add("d")
    with failing(served.root / "d" / file, getattr(errno, error)):
        for _ in range(2):
            refusal = refused(served, "d")
            assert (500, "InternalServerError") == (refusal.code, refusal.type)
            assert f"adapter 'd': {file} cannot be read" in refusal.message
        served.refresh_all()
        assert 500 == refused(served, "d").code
    assert refused(served, "d") is None
    assert "d" in served.models.lora_requests
    assert {} == served.registry.refusals.refused


def test_what_cannot_be_read_is_tried_ever_more_seldom(served: ServedFolder) -> None:
    """At each look at first; it may cost seconds, as a conversion does. In the end it is served by itself."""
    served.add("d")
    folder, tried = served.root / "d", []
    for _ in range(30):
        with failing(folder / WEIGHTS_NAME, errno.ENOSPC):
            tried.append(str(folder / CONFIG_NAME) in opened_by(served.refresh_all))
    assert [True] * FREE_CHANGES == tried[:FREE_CHANGES]
    assert FREE_CHANGES < sum(tried) < 12
    assert 500 == refused(served, "d").code  # also while it is not tried
    looks = 0
    while "d" not in served.models.lora_requests:
        served.refresh_all()
        looks += 1
    assert looks <= MOST_LOOKS


@pytest.mark.parametrize("name", ["d", "nobody"])
def test_what_cannot_be_looked_at_just_now_is_to_be_asked_for_again(
    served: ServedFolder, name: str
) -> None:
    """503, after which OpenAI's clients ask again by themselves: for an adapter and for what may be none."""
    served.add("d")
    served.registry._patient = PatientWork(most_hung=0)
    refusal = refused(served, name)
    assert (503, "ServiceUnavailableError") == (refusal.code, refusal.type)
    assert refused(served, "a") is None


def test_half_an_adapter_that_cannot_be_read_is_no_bad_request(served: ServedFolder) -> None:
    """Once it can be, its weights are what is missing, and that is the client's to know."""
    served.add("d")
    (served.root / "d" / WEIGHTS_NAME).unlink()
    with failing(served.root / "d" / CONFIG_NAME, errno.EMFILE):
        assert 500 == refused(served, "d").code
        assert {} == served.registry.refusals.refused
    refusal = refused(served, "d")
    assert (400, True) == (refusal.code, WEIGHTS_NAME in refusal.message)


def refused(served: ServedFolder, name: str) -> Any:
    """The error that a request for an adapter gets, None if it goes on."""

    async def stock(serving: Any, request: Any) -> None:
        """vLLM's own look at the model's name, which is one."""

    setattr(served.models, REGISTRY, served.registry)
    serving, request = SimpleNamespace(models=served.models), SimpleNamespace(model=name)
    answer = asyncio.run(explaining(stock)(serving, request))
    return None if answer is None else answer.error


def test_a_path_that_a_disk_does_not_tell_of_is_no_missing_folder(
    served: ServedFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is not taken for the name of an adapter in a hub."""
    path = "locked/a"
    locked = served.root.parent / "locked"
    locked.mkdir()
    (served.root / "a").rename(locked / "a")
    monkeypatch.chdir(served.root.parent)
    assert Path(path).absolute() == resolved(path, "mine").absolute()
    locked.chmod(0)
    user = os.geteuid()
    if user == 0:
        os.seteuid(65534)  # nobody: root may look everywhere
    try:
        with pytest.raises(
            AdapterUnreadableError, match="adapter 'mine': its folder cannot be read"
        ):
            resolved(path, "mine")
    finally:
        os.seteuid(user)
        locked.chmod(0o700)


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), AdapterUnreadableError),
        (OSError("no hub"), AdapterNotFoundError),
        (FileNotFoundError(errno.ENOENT, "nothing"), AdapterNotFoundError),
    ],
    ids=str,
)
def test_a_hubs_adapter_that_the_disk_cannot_hold_is_no_missing_one(
    monkeypatch: pytest.MonkeyPatch, error: OSError, kind: type[AdapterError]
) -> None:
    """What is wrong here may be over soon; a hub that cannot be asked is told as ever."""
    pytest.importorskip("vllm")

    def fetch(_path: str) -> str:
        raise error

    monkeypatch.setattr("vllm.lora.utils.get_adapter_absolute_path", fetch)
    with pytest.raises(kind, match="adapter 'mine'"):
        resolved("somebody/an-adapter", "mine")


def test_a_read_that_fails_half_way_breaks_no_adapter(served: ServedFolder) -> None:
    """Opened, but not to be read: a file of the kernel's stands for a disk that fails then."""
    (served.root / "d").mkdir()
    shutil.copy(served.root / "a" / CONFIG_NAME, served.root / "d")
    (served.root / "d" / WEIGHTS_NAME).symlink_to("/proc/self/mem")
    served.registry = AdapterRegistry(served.models, AdapterFolder(served.root, ["/proc"]), NEVER_S)
    served.refresh_all()
    assert "Input/output error" in served.registry.refusals.refused["d"]
    assert str(served.root / "d" / WEIGHTS_NAME) in opened_by(served.refresh_all)
    (served.root / "d" / WEIGHTS_NAME).unlink()
    shutil.copy(served.root / "a" / WEIGHTS_NAME, served.root / "d")
    served.refresh_all()
    assert {} == served.registry.refusals.refused


def test_other_rights_alone_are_looked_into(served: ServedFolder) -> None:
    """What the message advises works: chmod changes neither size nor time of change."""
    (served.root / "b" / CONFIG_NAME).write_text("{")
    served.refresh_all()
    served.registry.refusals.refused["b"] = "not seen since"
    wait_for_tick(served.root / "b" / CONFIG_NAME)
    (served.root / "b" / WEIGHTS_NAME).chmod(0o644)
    served.refresh_all()
    assert "is not JSON" in served.registry.refusals.refused["b"]


def test_a_content_that_cannot_be_read_holds_no_request_up(served: ServedFolder) -> None:
    """It goes on to the engine, which says what is wrong if that lasts; the next one reads again."""
    with failing(served.root / "b" / WEIGHTS_NAME, errno.EIO):
        served.refresh("b")
    assert ([], None) == (served.told(), served.registry.refusals.why("b"))
    served.refresh("b")
    assert [("announce", ["b"])] == served.told()


def test_an_unmounted_folder_keeps_the_offer(
    served: ServedFolder, caplog: pytest.LogCaptureFixture
) -> None:
    """An empty mount point is where it was; told once, and nothing is told anew when it is back."""
    away = served.root.rename(served.root.with_name("away"))
    served.root.mkdir()
    for _ in range(4):
        served.refresh_all()
    assert ([], ["a", "b", "c"]) == (served.told(), list(served.models.lora_requests))
    served.root.rmdir()
    away.rename(served.root)
    served.refresh_all()
    assert [] == served.told()
    first, last = (record.getMessage() for record in caplog.records)
    assert "its disk seems to be away" in first
    assert "works again" in last


@pytest.mark.parametrize("names", ["a", "ab"])
def test_what_is_away_for_one_look_stays(
    served: ServedFolder, caplog: pytest.LogCaptureFixture, names: str
) -> None:
    """One adapter's own mount, or most of the folder; told once; gone at the second look."""
    for is_back in (True, False):
        for name in names:
            (served.root / name).rename(served.root.with_name(name))
            (served.root / name).mkdir()
        served.refresh_all()
        assert ([], {*"abc"}) == (served.told(), set(served.models.lora_requests))
        assert 1 == len(caplog.records)
        for name in names if is_back else "":
            (served.root / name).rmdir()
            served.root.with_name(name).rename(served.root / name)
        if is_back:
            served.refresh_all()
            caplog.clear()
    served.refresh_all()
    assert [("withdraw", list(names))] == served.told()


def test_all_that_were_taken_away_are_gone_at_the_second_look(served: ServedFolder) -> None:
    """The folder is the same one, and empty."""
    for folder in list(served.root.iterdir()):
        shutil.rmtree(folder)
    served.refresh_all()
    assert [] == served.told()
    served.refresh_all()
    assert [("withdraw", ["a", "b", "c"])] == served.told()
