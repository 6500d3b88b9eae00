"""Pickled weights are converted as they are, and whatever else a pickle holds is refused with its reason."""

import errno
import os
import subprocess
import sys
import zipfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.numpy import load_file

from chameleon_lora.adapters.convert import _new_file, _unpickle, convert, is_only_pickled
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.inspect import AdapterLimits, require_servable
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.errors import (
    AdapterInvalidError,
    AdapterTooLargeError,
    AdapterUnreadableError,
    ConfigError,
)
from tests.adapters.failing_files import failing

torch: Any = pytest.importorskip("torch")
BIN = "adapter_model.bin"
DIMS = ModelDims(16, 32, 1, 2, 1, 8)


class PickledOrder:
    """What a hostile pickle asks for."""

    def __init__(self, target: Path) -> None:
        self._target = target

    def __reduce__(self) -> Any:  # type: ignore[explicit-override]
        return os.system, (f"touch {self._target}",)


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """An adapter whose weights are pickled: two share what is stored once, one is stored by columns."""
    folder = make_adapter(tmp_path / "pickled", DIMS, 4, seed=1)
    tensors = {name: torch.from_numpy(v) for name, v in load_file(folder / WEIGHTS_NAME).items()}
    first, second, third = (
        name for name, value in tensors.items() if len(value) == DIMS.hidden_size
    )
    both = torch.stack([tensors[first], tensors[second]])
    turned = tensors[third].t().contiguous().t()
    torch.save({**tensors, first: both[0], second: both[1], third: turned}, folder / BIN)
    (folder / WEIGHTS_NAME).rename(tmp_path / "right.safetensors")
    return folder


def names_in(folder: Path) -> list[str]:
    """What lies there, sorted."""
    return sorted(path.name for path in folder.iterdir())


def test_the_tensors_are_the_pickles_and_the_pickle_stays(adapter: Path, tmp_path: Path) -> None:
    """Byte by byte, and nothing else is left in the folder; what is there is never written over."""
    before = (adapter / BIN).read_bytes()
    right = load_file(tmp_path / "right.safetensors")
    assert is_only_pickled(adapter)
    info = require_servable(adapter, AdapterLimits(converts_bin=True), [tmp_path])
    found = load_file(adapter / WEIGHTS_NAME)
    assert {n: v.tobytes() for n, v in right.items()} == {n: v.tobytes() for n, v in found.items()}
    assert ["adapter_config.json", BIN, WEIGHTS_NAME] == names_in(adapter)
    assert (before, 4) == ((adapter / BIN).read_bytes(), info.rank)
    (adapter / WEIGHTS_NAME).write_bytes(b"mine")
    convert(adapter)
    assert b"mine" == (adapter / WEIGHTS_NAME).read_bytes()


def test_what_another_writes_meanwhile_is_not_written_over(adapter: Path) -> None:
    """And nothing of ours is left beside it."""
    with _new_file(adapter, ()) as file:
        (adapter / WEIGHTS_NAME).write_bytes(b"theirs")
        file.write(b"ours")
    assert b"theirs" == (adapter / WEIGHTS_NAME).read_bytes()
    assert ["adapter_config.json", BIN, WEIGHTS_NAME] == names_in(adapter)


def test_a_root_that_is_not_needed_is_not_looked_up(adapter: Path, tmp_path: Path) -> None:
    """Its disk may hang, and nothing of the adapter lies there."""

    class Roots:
        def __iter__(self) -> Iterator[Path]:
            yield tmp_path
            raise AssertionError("the second one was looked up")

    with pytest.raises(AdapterTooLargeError, match="the limit is 10"):
        require_servable(adapter, AdapterLimits(converts_bin=True, max_bytes=10), Roots())


@pytest.mark.parametrize("kind", ["order", "storage"])
def test_a_hostile_pickle_does_nothing(kind: str, adapter: Path, tmp_path: Path) -> None:
    """One that runs a program, and one that claims 8 GiB of memory: refused in its reader's limits."""
    words = _write_hostile(kind, adapter / BIN, tmp_path / "owned")
    with pytest.raises(
        AdapterInvalidError, match=f"{BIN} is no file of tensors .*{words}.*way out"
    ):
        convert(adapter)
    assert ["adapter_config.json", BIN] == names_in(adapter)
    assert not (tmp_path / "owned").exists()


def _write_hostile(kind: str, path: Path, owned: Path) -> str:
    """The words with which it is refused."""
    if kind == "order":
        torch.save({"a": torch.zeros(2), "b": PickledOrder(owned)}, path)
        return "posix.system"
    torch.save({"a": torch.zeros(70_000)}, path, _use_new_zipfile_serialization=False)
    raw, size = path.read_bytes(), (70_000).to_bytes(4, "little")
    assert raw.count(b"J" + size) > 0
    path.write_bytes(raw.replace(b"J" + size, b"J" + (2**31 - 1).to_bytes(4, "little")))
    return "memory"


OTHERS: dict[str, tuple[Callable[[], object], str]] = {
    "list": (lambda: [torch.zeros(2)], "a list"),
    "nested": (lambda: {"model": {"a": torch.zeros(2)}}, "'model' is a dict"),
    "numbered": (lambda: {3: torch.zeros(2)}, "under 3 is"),
    "nothing": (dict, "a dict"),
    "sparse": (lambda: {"a": torch.zeros(2, 2).to_sparse()}, "no plain tensor"),
    "meta": (lambda: {"a": torch.zeros(2, device="meta")}, "no plain tensor"),
    "ragged": (lambda: {"a": torch.nested.nested_tensor([torch.zeros(2)])}, "no plain tensor"),
    "wide": (lambda: {"a": torch.zeros(1).expand(1 << 40)}, "claim 4398046511104 bytes"),
    "many": (lambda: dict.fromkeys(map(str, range(50)), torch.zeros(4000)), "claim 800000 bytes"),
}


@pytest.mark.parametrize("kind", OTHERS)
def test_what_is_no_file_of_tensors_is_refused(kind: str, tmp_path: Path) -> None:
    """In the reader itself, without its limits: each before more is allocated than the file has."""
    from chameleon_lora.adapters import unpickle

    make, words = OTHERS[kind]
    torch.save(make(), tmp_path / BIN)
    with pytest.raises(Exception, match=words):
        unpickle._tensors(str(tmp_path / BIN), (tmp_path / BIN).stat().st_size)


def test_an_archive_that_grows_is_refused(tmp_path: Path) -> None:
    """torch writes parts as they are; a compressed one may be any size."""
    from chameleon_lora.adapters import unpickle

    torch.save({"a": torch.zeros(100_000)}, tmp_path / "plain")
    with (
        zipfile.ZipFile(tmp_path / "plain") as plain,
        zipfile.ZipFile(tmp_path / BIN, "w", zipfile.ZIP_DEFLATED) as bomb,
    ):
        for part in plain.infolist():
            bomb.writestr(part.filename, plain.read(part))
    with pytest.raises(ValueError, match="compressed"):
        unpickle._tensors(str(tmp_path / BIN), (tmp_path / BIN).stat().st_size)


def test_the_reader_gives_up_what_it_does_not_need() -> None:
    """Of itself, for good: no more memory, time, files and children than a sound file takes, and no core."""
    script = """if True:
        import resource
        from chameleon_lora.adapters import unpickle
        unpickle._give_up_rights(1000)
        limits = (resource.getrlimit(kind) for kind in (
            resource.RLIMIT_NOFILE, resource.RLIMIT_NPROC, resource.RLIMIT_CORE, resource.RLIMIT_CPU, resource.RLIMIT_AS
        ))
        print(*(number for pair in limits for number in pair))
    """
    said = list(
        map(int, subprocess.check_output([sys.executable, "-c", script], text=True).split())
    )
    files, children, core, cpu_s, memory_bytes = said[::2]
    assert [24, 0, 0, cpu_s + 1, memory_bytes] == said[1::2]  # CPU: SIGXCPU comes before SIGKILL
    assert (24, 0, 0) == (files, children, core)
    assert 60 <= cpu_s < 600
    assert 512 << 20 < memory_bytes < 1 << 40


def test_what_cannot_be_converted_says_why(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too large, a pipe, outside the roots, no room to write, no torch, no pickle: before anything is read."""
    with pytest.raises(AdapterTooLargeError, match="the limit is 10; way out"):
        convert(adapter, max_bytes=10)
    with pytest.raises(AdapterInvalidError, match="trusted_roots"):
        convert(adapter, roots=[tmp_path / "elsewhere"])
    monkeypatch.setattr(os, "fsync", _full)
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(AdapterUnreadableError, match=r"No space left .* or convert a copy"):
        convert(adapter)
    (adapter / BIN).unlink()
    with pytest.raises(AdapterInvalidError, match=f"no {BIN} to convert; way out"):
        convert(adapter)
    os.mkfifo(adapter / BIN)
    with pytest.raises(AdapterInvalidError, match="not a regular file"):
        convert(adapter)
    assert ["adapter_config.json", BIN] == names_in(adapter)


def test_trouble_that_may_be_over_soon_refuses_no_adapter(adapter: Path) -> None:
    """As where descriptors are used up: whoever offers it tries again."""
    with (
        failing(adapter, errno.EMFILE),
        pytest.raises(AdapterUnreadableError, match=r"adapter 'pickled': .*Too many open files"),
    ):
        require_servable(adapter, AdapterLimits(converts_bin=True))


@pytest.mark.parametrize("error", ["ENOSPC", "EDQUOT", "EACCES", "EPERM", "EROFS", "EFBIG", "EIO"])
def test_a_folder_that_cannot_be_written_refuses_no_adapter(
    adapter: Path, monkeypatch: pytest.MonkeyPatch, error: str
) -> None:
    """Whatever its disk or its rights are, the file is not to blame; it says which file cannot be made."""

    def fail(*_args: object, **_given: object) -> None:
        raise OSError(getattr(errno, error), os.strerror(getattr(errno, error)))

    monkeypatch.setattr(os, "link", fail)
    monkeypatch.setattr(sys, "executable", "/bin/true")
    with pytest.raises(AdapterUnreadableError, match=os.strerror(getattr(errno, error))):
        require_servable(adapter, AdapterLimits(converts_bin=True))
    assert ["adapter_config.json", BIN] == names_in(adapter)


@pytest.mark.parametrize(
    ("source", "target", "words"),
    [
        (BIN, "/dev/full", "No space left on device"),
        ("/proc/self/mem", "out", "Input/output error"),
    ],
)
def test_the_reader_blames_no_file_for_its_disk(
    adapter: Path, source: str, target: str, words: str
) -> None:
    """In its own process: a disk that is full when the tensors are written, and one that fails in a read."""
    with (
        (adapter / source).open("rb", buffering=0) as pickled,
        (adapter / target).open("wb", buffering=0) as made,
        pytest.raises(AdapterUnreadableError, match=f"{words}.*way out"),
    ):
        _unpickle(BIN, pickled, made)


@pytest.mark.parametrize(
    ("end", "error"),
    [
        ("kill -KILL $$", AdapterUnreadableError),  # as for want of the machine's memory
        ("kill -BUS $$", AdapterUnreadableError),  # a mapped file's disk failed
        ("exit 1", AdapterUnreadableError),  # before the file was read
        ("kill -SEGV $$", AdapterInvalidError),
        ("kill -XCPU $$", AdapterInvalidError),
    ],
)
def test_a_reader_that_was_stopped_blames_what_stopped_it(
    adapter: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, end: str, error: type[Exception]
) -> None:
    """Only what a file can do to it is the file's fault."""
    (tmp_path / "reader").write_text(f"#!/bin/sh\n{end}\n")
    (tmp_path / "reader").chmod(0o755)
    monkeypatch.setattr(sys, "executable", str(tmp_path / "reader"))
    with pytest.raises(error, match="was stopped"):
        convert(adapter)


def test_without_torch_it_says_how_to_get_it(
    adapter: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The command works without, so the message comes before a process is started."""
    monkeypatch.setitem(sys.modules, "torch", None)
    with pytest.raises(ConfigError, match="pip install torch"):
        convert(adapter)


def _full(_descriptor: int) -> None:
    raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def test_a_check_converts_only_where_it_may(adapter: Path) -> None:
    """Else its refusal names both ways out; a pickle that is refused is so by the adapter's name."""
    with pytest.raises(
        AdapterInvalidError, match=r"adapters convert.* or set serving\.converts_bin"
    ):
        require_servable(adapter, AdapterLimits())
    (adapter / BIN).unlink()
    (adapter / BIN).mkdir()
    with pytest.raises(
        AdapterInvalidError, match=f"adapter 'pickled': {BIN} is not a regular file"
    ):
        require_servable(adapter, AdapterLimits(converts_bin=True))
