"""When files may have changed, and which bytes they hold: two different questions."""

import os
import shutil
import tracemalloc
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace

import pytest

from chameleon_lora.adapters import AdapterFolder, read_fingerprint
from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.content import fingerprint_of, stamp_of
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.errors import AdapterInvalidError
from tests.adapters.rewriting import FILE_CHANGES, rewrite, wait_for_tick

DIMS = ModelDims(8, 8, 1, 1, 1, 8)
STATUS = ("st_dev", "st_ino", "st_size", "st_mtime_ns", "st_ctime_ns")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A sound adapter, whose files have the time of change that archives give."""
    adapter = make_adapter(tmp_path / "root" / "a", DIMS, 4, seed=1, target_modules=("q_proj",))
    for path in adapter.iterdir():
        os.utime(path, ns=(0, 0))
    return adapter


@pytest.mark.parametrize("file", [CONFIG_NAME, WEIGHTS_NAME])
@pytest.mark.parametrize("way", FILE_CHANGES)
def test_other_bytes_are_another_stamp_and_another_fingerprint(
    adapter: Path, file: str, way: str
) -> None:
    """Of the same number, under the same time of change, in the same file or in another."""
    path, folder = adapter / file, AdapterFolder(adapter.parent)
    before = path.stat()
    stamp, fingerprint = folder.try_stamp("a"), read_fingerprint(adapter)
    wait_for_tick(path)
    rewrite(path, way)
    after = path.stat()
    assert (before.st_size, before.st_mtime_ns) == (after.st_size, after.st_mtime_ns)
    assert stamp != folder.try_stamp("a")
    assert fingerprint != read_fingerprint(adapter)


def touch(path: Path) -> None:
    """Another time of change."""
    os.utime(path)


def write_again(path: Path) -> None:
    """The same bytes, in place, as rsync does when it compares no bytes."""
    path.write_bytes(path.read_bytes())


def replace(path: Path) -> None:
    """The same bytes in another file."""
    shutil.copy2(path, path.parent / "copy")
    (path.parent / "copy").replace(path)


@pytest.mark.parametrize(
    "change",
    [
        touch,
        write_again,
        replace,
        lambda path: path.chmod(0o600),
        lambda path: (path.parent / "second").hardlink_to(path),
    ],
    ids=["touched", "written again", "replaced", "chmod", "hard link"],
)
def test_the_same_bytes_have_the_same_fingerprint(
    adapter: Path, change: Callable[[Path], object]
) -> None:
    """Whatever a stamp has to say of what happened to their files."""
    path = adapter / WEIGHTS_NAME
    stamp, fingerprint = stamp_of(path.stat()), read_fingerprint(adapter)
    wait_for_tick(path)
    change(path)
    assert stamp != stamp_of(path.stat())
    assert fingerprint == read_fingerprint(adapter)


@pytest.mark.parametrize("field", STATUS)
def test_each_part_of_a_status_is_in_the_stamp(field: str) -> None:
    """Another file may have the same size and all times, as one that was made in the same moment."""
    status = dict.fromkeys(STATUS, 5)
    first, second = SimpleNamespace(**status), SimpleNamespace(**status | {field: 6})
    assert stamp_of(first) != stamp_of(second)  # type: ignore[arg-type]  # as os.stat gives it


def test_a_fingerprint_is_of_configuration_and_weights(adapter: Path, tmp_path: Path) -> None:
    """A byte that moves from one file's end to the other's begin is another content."""
    pieces = {}
    for cut in (10, 11):
        folder = tmp_path / str(cut)
        folder.mkdir()
        raw = (adapter / CONFIG_NAME).read_bytes()
        (folder / CONFIG_NAME).write_bytes(raw[:cut])
        (folder / WEIGHTS_NAME).write_bytes(raw[cut:])
        pieces[cut] = read_fingerprint(folder)
    assert pieces[10] != pieces[11]
    assert {32} == set(map(len, pieces.values()))


def test_a_fingerprint_is_of_the_whole_file(adapter: Path) -> None:
    """Wherever whoever read its header left it."""
    with (adapter / WEIGHTS_NAME).open("rb", buffering=0) as file:
        file.seek(100)
        assert read_fingerprint(adapter) == fingerprint_of(
            (adapter / CONFIG_NAME).read_bytes(), file
        )


@pytest.mark.parametrize("file", [CONFIG_NAME, WEIGHTS_NAME])
def test_half_an_adapter_has_no_fingerprint(adapter: Path, file: str) -> None:
    """The error says which file is missing."""
    (adapter / file).unlink()
    with pytest.raises(AdapterInvalidError, match=f"{file} is missing"):
        read_fingerprint(adapter)


def test_reading_takes_little_memory(adapter: Path) -> None:
    """64 MiB of weights are read in pieces."""
    os.truncate(adapter / WEIGHTS_NAME, 64 << 20)
    tracemalloc.start()
    read_fingerprint(adapter)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak_bytes < 1 << 20
