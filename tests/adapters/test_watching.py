"""A folder that is followed: each look is at what changed, and finds it. Real files, real events."""

import os
import shutil
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import psutil
import pytest
from inotify_simple import INotify

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.folder import AdapterFolder
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.watching import FolderEvents, FolderWatch
from chameleon_lora.errors import AdapterNotFoundError
from tests.engine_vllm.served_folder import opened_by

HOUR_S = 3600.0
Look = Callable[[], set[str]]


def write(folder: Path, text: str = "{}") -> Path:
    """A folder that is taken for an adapter."""
    folder.mkdir(parents=True, exist_ok=True)
    for file in (CONFIG_NAME, WEIGHTS_NAME):
        (folder / file).write_text(text)
    return folder


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """A folder with the adapters a and b."""
    root = tmp_path / "root"
    write(root / "a")
    write(root / "b")
    return root


@pytest.fixture
def watch(root: Path) -> FolderWatch:
    """Of it, after a first look."""
    watch = FolderWatch(AdapterFolder(root), HOUR_S)
    assert {"a", "b"} == look(watch) == watch.look().stamps.keys()
    assert set() == look(watch)
    return watch


def look(watch: FolderWatch, now_s: float = 0.0) -> set[str]:
    """Look at what is due, and answer what it was."""
    due = watch.due(now_s)
    for name in due:
        watch.look_at(name)
    return set(due)


def later(path: Path) -> None:
    """Another time of change."""
    status = path.stat()
    os.utime(path, ns=(status.st_atime_ns, status.st_mtime_ns + 1_000_000_000))


def replace(path: Path, text: str) -> None:
    """Another in its place."""
    shutil.rmtree(path)
    if text:
        write(path, text)
    else:
        path.write_text("")


def write_too_often(folder: Path) -> None:
    """More than the kernel keeps events of."""
    most = int(Path("/proc/sys/fs/inotify/max_queued_events").read_text())
    files = [folder / name for name in "xy"]
    for number in range(most // 2 + 1):
        files[number % 2].touch()
        files[number % 2].unlink()


def watches_of(watch: FolderWatch) -> int:
    """How many the kernel keeps for it."""
    assert watch._events is not None
    descriptor = watch._events._inotify.fileno()
    return Path(f"/proc/self/fdinfo/{descriptor}").read_text().count("inotify wd:")


CHANGES: dict[str, Callable[[Path], object]] = {
    "written over": lambda a: (a / WEIGHTS_NAME).write_text("{} "),
    "touched": lambda a: later(a / CONFIG_NAME),
    "put in its place": lambda a: write(a.with_name(".new"), "{} ").joinpath(CONFIG_NAME).rename(a / CONFIG_NAME),
    "removed": shutil.rmtree,
    "a file of it removed": lambda a: (a / WEIGHTS_NAME).unlink(),
    "renamed": lambda a: a.rename(a.with_name("c")),
    "moved out": lambda a: a.rename(a.parent.parent / "a"),
    "another in its place": lambda a: replace(a, "{}  "),
    "a link in its place": lambda a: a.rename(a.with_name("c")).with_name("a").symlink_to("c"),
    "a file in its place": lambda a: replace(a, ""),
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES)
def test_a_change_is_found_by_looking_at_little(
    root: Path, watch: FolderWatch, change: str
) -> None:
    """At the next look; what is known then is what a look at everything finds."""
    before = watch.look().stamps
    CHANGES[change](root / "a")
    assert "b" not in look(watch)
    anew = FolderWatch(AdapterFolder(root), 0.0)
    look(anew)
    assert before != watch.look().stamps == anew.look().stamps
    assert watch.look().left_out == anew.look().left_out


def test_what_changed_is_looked_at_once_more(root: Path, watch: FolderWatch) -> None:
    """It may have been half-written at the first look. Then there is rest."""
    write(root / "c")
    assert [{"c"}, {"c"}, set()] == [look(watch) for _ in range(3)]
    write(root / "c", "{} ")  # what came later is followed, too
    assert [{"c"}, {"c"}, set()] == [look(watch) for _ in range(3)]


def test_a_folder_that_moved_away_is_followed_no_more(root: Path, watch: FolderWatch) -> None:
    """Nor is one of its name taken for it; its watch is given back."""
    before = watches_of(watch)
    moved = (root / "a").rename(root.parent / "moved")
    look(watch)
    look(watch)
    assert before - 1 == watches_of(watch)
    write(moved, "{} ")
    assert set() == look(watch)
    write(root / "a")
    assert {"a"} == look(watch)


@pytest.mark.parametrize("linked", ["folder", CONFIG_NAME, WEIGHTS_NAME, "adapter_model.bin"])
def test_links_are_looked_at_each_time_and_last(
    root: Path, watch: FolderWatch, linked: str
) -> None:
    """No event tells what becomes of that to which they lead."""
    outside = write(root.parent / "outside")
    (outside / "adapter_model.bin").write_text("")
    if linked == "folder":
        (root / "a-link").symlink_to(outside)
    else:
        (root / "a-link").mkdir()
        (root / "a-link" / linked).symlink_to(outside / linked)
    look(watch)
    look(watch)
    write(root / "b", "{} ")
    later(outside / (CONFIG_NAME if linked == "folder" else linked))
    assert ["b", "a-link"] == watch.due(0.0)
    watch.look_at("b")
    watch.look_at("a-link")
    assert ["b", "a-link"] == watch.due(0.0)
    anew = FolderWatch(AdapterFolder(root), HOUR_S)
    if linked == "folder":
        assert ["a", "b", "a-link"] == anew.due(0.0)


def test_all_are_looked_at_now_and_then(watch: FolderWatch) -> None:
    """Whatever events say."""
    assert set() == look(watch, HOUR_S - 1.0)
    assert {"a", "b"} == look(watch, HOUR_S)
    assert set() == look(watch, HOUR_S)


@pytest.mark.parametrize("reason", ["network", "no instance"])
def test_where_nobody_tells_all_are_looked_at(
    root: Path, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    """On a file system that others write to, and where the kernel has no more to give."""
    if reason == "network":
        on_a_network(monkeypatch)
    else:
        monkeypatch.setattr(INotify, "__init__", _none_left)
    watch = FolderWatch(AdapterFolder(root), HOUR_S)
    assert [{"a", "b"}] * 2 == [look(watch) for _ in range(2)]
    shutil.rmtree(root / "a")
    assert {"a", "b"} == look(watch)
    assert {"b"} == watch.look().stamps.keys()


def test_folders_without_a_watch_are_looked_at_each_time(
    root: Path,
    watch: FolderWatch,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    """Those that came when no watch was left, and the log says so once."""
    with monkeypatch.context() as patched:
        patched.setattr(watch._events._inotify, "add_watch", _none_left)  # type: ignore[union-attr]
        for name in "cd":
            write(root / name)
        look(watch)
    (record,) = caplog.records
    assert "max_user_watches" in record.getMessage()
    assert {"c", "d"} <= look(watch)
    look(watch)
    assert set() == look(watch)


def test_too_many_events_are_a_look_at_all(root: Path, watch: FolderWatch) -> None:
    """The kernel drops those that nobody fetches."""
    write_too_often(root / "a")
    shutil.rmtree(root / "b")
    assert {"a", "b"} == look(watch)
    assert {"a"} == watch.look().stamps.keys()


def test_events_go_on_after_too_many(
    root: Path, watch: FolderWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Though with them went the word that the folder is another, whose number is the same."""
    status_of, status = os.stat, root.stat()

    def same(path: Any, **given: Any) -> os.stat_result:
        return status if path == root else status_of(path, **given)

    monkeypatch.setattr(os, "stat", same)
    write_too_often(root / "a")
    shutil.rmtree(root)
    write(root / "d")
    assert {"a", "b", "d"} == look(watch)
    write(root / "e")
    assert "e" in look(watch)


def test_another_folder_of_that_name_is_looked_at(root: Path, watch: FolderWatch) -> None:
    """Whether a link leads elsewhere, or it was made anew; while it is away, that is an error."""
    away = root.rename(root.with_name("away"))
    with pytest.raises(AdapterNotFoundError, match="cannot be listed"):
        watch.due(0.0)
    assert {"a", "b"} == watch.look().stamps.keys()
    write(root.with_name("new") / "c")
    root.symlink_to("new")
    assert {"a", "b", "c"} == look(watch)
    assert {"c"} == watch.look().stamps.keys()
    root.unlink()
    away.rename(root)
    look(watch)
    assert {"a", "b"} == watch.look().stamps.keys()
    shutil.rmtree(root)
    write(root / "d")  # maybe with the very inode of the one before
    look(watch)
    assert {"d"} == watch.look().stamps.keys()
    write(root / "e")
    look(watch)
    assert {"d", "e"} == watch.look().stamps.keys()


def test_what_was_due_and_not_looked_at_stays_due(root: Path, watch: FolderWatch) -> None:
    """The look at it may hang."""
    write(root / "c")
    assert ["c"] == watch.due(0.0) == watch.due(0.0) == watch.due(0.0)


def test_a_change_while_a_look_hangs_is_looked_at(
    root: Path, watch: FolderWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was due meanwhile is not done by a look that began before."""
    status_of = os.stat

    def late(path: Any, *, follow_symlinks: bool = True) -> os.stat_result:
        status = status_of(path, follow_symlinks=follow_symlinks)
        if path == root / "a" / WEIGHTS_NAME and follow_symlinks:
            write(root / "a", "{}  ")
            assert ["a"] == watch.due(0.0) == watch.due(0.0)
        return status

    with monkeypatch.context() as patched:
        patched.setattr(os, "stat", late)
        watch.look_at("a")
    assert {"a"} == look(watch)
    assert AdapterFolder(root).try_stamp("a") == watch.look().stamps["a"]


def test_why_a_folder_is_none_is_asked_where_it_changed(
    root: Path, watch: FolderWatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Looking into it may cost a hundred times more than looking at it."""
    on_a_network(monkeypatch)
    watch = FolderWatch(AdapterFolder(root), HOUR_S)
    task = root / "task"
    write(task / "checkpoint-1")

    def listed(*times_s: float) -> int:
        return opened_by(lambda: [look(watch, now_s) for now_s in times_s]).count(str(task))

    assert 1 == listed(0.0, 0.0)
    assert "checkpoint-1" in watch.look().left_out["task"]
    write(task / "checkpoint-2")
    assert 1 == listed(0.0)
    assert "checkpoint-2" in watch.look().left_out["task"]
    assert 1 == listed(HOUR_S)


def test_no_link_is_followed(root: Path) -> None:
    """Whoever may write into the folder could have the server watch all of the disk."""
    (root / "c").symlink_to(root.parent)
    (root / "file").write_text("")
    events = FolderEvents(root)
    assert [True, False, True, True] == [events.follow(name) for name in ("a", "c", "file", "none")]
    write(root.parent / "outside")
    assert set() == events.take()
    events.close()


def on_a_network(patch: pytest.MonkeyPatch) -> None:
    """Afterwards the system says of all its file systems that they are NFS."""
    mounts = [SimpleNamespace(mountpoint="/", fstype="nfs4")]
    patch.setattr(psutil, "disk_partitions", lambda **_: mounts)


def _none_left(*_: object, **__: object) -> int:
    raise OSError(28, "No space left on device")
