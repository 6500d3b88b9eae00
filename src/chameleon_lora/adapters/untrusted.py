"""Bytes and JSON from files nobody vouches for, read within caps and quoted safely."""

import json
import os
import reprlib
import stat
from collections.abc import Sequence
from contextlib import AbstractContextManager
from pathlib import Path
from typing import BinaryIO

from chameleon_lora.errors import AdapterInvalidError


def open_regular(path: Path, roots: Sequence[Path] = ()) -> AbstractContextManager[BinaryIO]:
    """Open a regular file for reading, unbuffered; a pipe or a device is not opened, or never waits.

    With `roots`, real paths, the file that was opened lies below one, whatever links led there.

    Raises:
        FileNotFoundError: nothing has that name.
        AdapterInvalidError: it cannot be opened, is not a regular file, or lies outside the roots.
    """
    try:
        _require_regular(path.stat().st_mode, path)  # opening alone can set off a device
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise AdapterInvalidError(
            f"{path.name} cannot be opened ({reason}); way out: make it readable"
        ) from error
    try:
        _require_regular(os.fstat(descriptor).st_mode, path)  # it may be another file by now
        require_inside(descriptor, path, roots)
    except AdapterInvalidError:
        os.close(descriptor)
        raise
    return os.fdopen(descriptor, "rb", buffering=0)


def is_folder(path: Path) -> bool:
    """Is there a folder at `path` that we may look into? Never raises."""
    try:
        return path.is_dir()
    except OSError:
        return False


def read_exactly(file: BinaryIO, nbytes: int) -> bytes:
    """The next `nbytes` bytes; fewer only where the file ends or cannot be read on."""
    pieces: list[bytes] = []
    missing = nbytes
    while missing > 0:
        try:
            piece = file.read(missing)
        except OSError:
            break
        if not piece:
            break
        pieces.append(piece)
        missing -= len(piece)
    return b"".join(pieces)


def parse_object(raw: bytes, source: str) -> dict[str, object]:
    """The JSON object in `raw`, UTF-8; a key given twice, NaN and deep nesting are refused.

    Raises:
        AdapterInvalidError: `raw` is anything else; `source` names it in the message.
    """
    try:
        value: object = json.loads(
            raw.decode("utf-8"), object_pairs_hook=_unique, parse_constant=_refuse_constant
        )
    except (ValueError, RecursionError) as error:
        reason = quoted(str(error)) if isinstance(error, ValueError) else "nested too deeply"
        raise AdapterInvalidError(
            f"{source} is not JSON ({reason}); way out: save the adapter again"
        ) from error
    if not isinstance(value, dict):
        raise AdapterInvalidError(
            f"{source} is a JSON {type(value).__name__}, not an object; "
            "way out: save the adapter again"
        )
    return value


def quoted(value: object) -> str:
    """`value` for a message: escaped and cut, whatever a hostile file put there."""
    cut = reprlib.Repr()
    cut.maxstring, cut.maxother = 100, 60
    return cut.repr(value)


def _require_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise AdapterInvalidError(
            f"{path.name} is not a regular file; way out: put the file itself there"
        )


def require_inside(descriptor: int, path: Path, roots: Sequence[Path]) -> None:
    """Nothing if what was opened lies below one of the roots, or there are none.

    Asks the kernel where it is: a link may have changed since its name was read.

    Raises:
        AdapterInvalidError: it lies elsewhere.
    """
    place = Path(f"/proc/self/fd/{descriptor}").readlink()
    if roots and not any(root in place.parents for root in roots):
        raise AdapterInvalidError(
            f"{path.name} leads out of the folder of adapters; way out: put a copy of the file itself "
            "there, or name the folder it lies in in serving.trusted_roots"
        )


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is given twice")
    return made


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")
