"""Pickled weights, adapter_model.bin, written beside as adapter_model.safetensors.

Nothing here unpickles: a process of its own does (`unpickle`), within limits. It gets two open files and no
path: the pickled one, and a hidden one in the same folder that gets the weights' name once it is whole.
"""

import errno
import importlib.util
import os
import signal
import subprocess
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import BinaryIO

from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.untrusted import open_regular, require_inside, unreadable
from chameleon_lora.errors import (
    AdapterInvalidError,
    AdapterTooLargeError,
    AdapterUnreadableError,
    ConfigError,
)

PICKLED_NAMES = ("adapter_model.bin", "adapter_model.pt")
TIME_LIMIT_S = 180.0  # CPU seconds have a limit of their own; this one is for disks that hang
REFUSED, FAILED = 3, 4  # the reader's status when its reason is on stderr: the file's, a disk's
_BY_THE_FILE = (signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGSEGV, signal.SIGXCPU)
_OF_THE_FOLDER = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_WAY_OUT = "way out: save it again with PEFT's save_pretrained, which writes safetensors"
_ROOM = (
    "way out: see to the folder's disk and rights, or convert a copy of it where you may write, and "
    "put that in its place"
)
_FOLDER_FLAGS = os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC


def pickled_file(folder: Path) -> str | None:
    """The name of the pickled weights there; None if there are none."""
    return next((name for name in PICKLED_NAMES if os.path.lexists(folder / name)), None)


def is_only_pickled(folder: Path) -> bool:
    """Does the folder hold pickled weights, and no others?"""
    return pickled_file(folder) is not None and not os.path.lexists(folder / WEIGHTS_NAME)


def convert(folder: Path, max_bytes: int | None = None, roots: Iterable[Path] = ()) -> None:
    """Afterwards the folder holds weights as safetensors too: the same, unless there were some.

    Nothing that is there is written over or removed. With `roots`, only in a folder below one.

    Raises:
        AdapterInvalidError: there is nothing to convert, or it is no file of tensors.
        AdapterTooLargeError: it has more than `max_bytes`.
        AdapterUnreadableError: it cannot be read or written now, by the fault of a disk, rights or limits.
        ConfigError: torch is not installed.
    """
    name = pickled_file(folder)
    if name is None:
        raise AdapterInvalidError(
            f"there is no {PICKLED_NAMES[0]} to convert; way out: name the folder that holds it"
        )
    if not is_only_pickled(folder):
        return
    if importlib.util.find_spec("torch") is None:
        raise ConfigError(f"{name} is pickled by torch; way out: pip install torch, then again")
    try:
        with open_regular(folder / name, roots) as source, _new_file(folder, roots) as target:
            size = os.fstat(source.fileno()).st_size
            if max_bytes is not None and size > max_bytes:
                raise AdapterTooLargeError(
                    f"{name} has {size} bytes, the limit is {max_bytes}; way out: convert it on a machine "
                    "with more memory"
                )
            _unpickle(name, source, target)
    except OSError as error:
        reason = unreadable(name, error)
        if error.errno in _OF_THE_FOLDER:
            reason = f"{WEIGHTS_NAME} cannot be made beside {name} ({error.strerror}); {_ROOM}"
        raise AdapterUnreadableError(reason) from error


@contextmanager
def _new_file(folder: Path, roots: Iterable[Path]) -> Iterator[BinaryIO]:
    """A file in the folder that gets the name of the weights if the block ends well, else goes.

    By the open folder, not its path: what that names may change meanwhile.
    """
    hidden = f".{WEIGHTS_NAME}.{os.getpid()}-{os.urandom(4).hex()}"
    place = os.open(folder, _FOLDER_FLAGS)
    try:
        require_inside(place, folder, roots)
        flags = os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
        with os.fdopen(os.open(hidden, flags, 0o644, dir_fd=place), "w+b") as file:
            try:
                yield file
                os.fsync(file.fileno())
                with suppress(FileExistsError):  # another one made it meanwhile
                    os.link(hidden, WEIGHTS_NAME, src_dir_fd=place, dst_dir_fd=place)
            finally:
                with suppress(OSError):
                    os.unlink(hidden, dir_fd=place)
    finally:
        os.close(place)


def _unpickle(name: str, source: BinaryIO, target: BinaryIO) -> None:
    files = source.fileno(), target.fileno()
    command = [sys.executable, "-P", "-m", "chameleon_lora.adapters.unpickle", *map(str, files)]
    kept = {
        key: value
        for key in ("PATH", "PYTHONPATH", "LD_LIBRARY_PATH")
        if (value := os.environ.get(key))
    }
    try:
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE,
            pass_fds=files, env=kept, timeout=TIME_LIMIT_S, check=False,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        raise AdapterUnreadableError(
            f"{name} could not be read in {TIME_LIMIT_S:.0f} s; way out: see to its disk"
        ) from error
    status = done.returncode
    if status == 0:
        return
    words = done.stderr.decode(errors="replace").rstrip()
    told = words.rpartition("\n")[2]  # torch may have warned before
    if status == FAILED:
        raise AdapterUnreadableError(f"{WEIGHTS_NAME} cannot be made of {name} ({told}); {_ROOM}")
    if status != REFUSED:
        told = f"its reader was stopped (status {status})"  # below 0: by that signal
    if status != REFUSED and -status not in _BY_THE_FILE:
        raise AdapterUnreadableError(
            f"{name} was not read: {told}; way out: see to the machine's memory and disks"
        )
    raise AdapterInvalidError(
        f"{name} is no file of tensors that can be read safely: {told}; {_WAY_OUT}"
    )
