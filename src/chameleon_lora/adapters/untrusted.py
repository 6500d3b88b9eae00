"""Bytes and JSON from files nobody vouches for, read within caps and quoted safely."""

import errno
import json
import os
import re
import reprlib
import stat
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import AbstractContextManager
from io import FileIO
from pathlib import Path
from typing import BinaryIO

from chameleon_lora.errors import AdapterInvalidError, AdapterUnreadableError

_BLANKS = re.compile(r"[ \t\n\r]*")
_LEADS_NOWHERE = (errno.ENOENT, errno.ENOTDIR, errno.ELOOP, errno.ENAMETOOLONG)


def open_regular(path: Path, roots: Iterable[Path] = ()) -> AbstractContextManager[FileIO]:
    """Open a regular file for reading, unbuffered; a pipe or a device is not opened, or never waits.

    With `roots`, real paths, the file that was opened lies below one, whatever links led there.

    Raises:
        FileNotFoundError: nothing has that name.
        AdapterInvalidError: it leads nowhere, is not a regular file, or lies outside the roots.
        AdapterUnreadableError: it cannot be opened.
    """
    try:
        _require_regular(path.stat().st_mode, path)  # opening alone can set off a device
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
        try:
            _require_regular(os.fstat(descriptor).st_mode, path)  # it may be another file by now
            require_inside(descriptor, path, roots)
        except (AdapterInvalidError, OSError):
            os.close(descriptor)
            raise
    except FileNotFoundError:
        raise
    except (OSError, ValueError) as error:
        if isinstance(error, OSError) and not leads_nowhere(error):
            raise AdapterUnreadableError(unreadable(path.name, error)) from error
        reason = error.strerror if isinstance(error, OSError) else error
        raise AdapterInvalidError(
            f"{path.name} cannot be opened ({reason}); way out: put the file itself there"
        ) from error
    return os.fdopen(descriptor, "rb", buffering=0)


def leads_nowhere(error: OSError) -> bool:
    """Whether nothing is there, so that no disk, right or limit is to blame."""
    return error.errno in _LEADS_NOWHERE


def unreadable(name: str, error: OSError) -> str:
    """Why a file cannot be read, as a message of AdapterUnreadableError."""
    return (
        f"{name} cannot be read ({error.strerror}); way out: make it readable, or see to its disk"
    )


def is_folder(path: Path) -> bool:
    """Is there a folder at `path`?

    Raises:
        AdapterUnreadableError: that cannot be told.
    """
    try:
        return path.is_dir()
    except OSError as error:
        if leads_nowhere(error):
            return False
        raise AdapterUnreadableError(unreadable("its folder", error)) from error


def read_exactly(file: BinaryIO, nbytes: int, name: str) -> bytes:
    """The next `nbytes` bytes of the file of that name; fewer only where it ends.

    Raises:
        AdapterUnreadableError: it cannot be read on.
    """
    pieces: list[bytes] = []
    missing = nbytes
    while missing > 0:
        try:
            piece = file.read(missing)
        except OSError as error:
            raise AdapterUnreadableError(unreadable(name, error)) from error
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
        raise _no_json(source, error) from error
    if not isinstance(value, dict):
        raise AdapterInvalidError(
            f"{source} is a JSON {type(value).__name__}, not an object; "
            "way out: save the adapter again"
        )
    return value


def object_fields(
    raw: bytes, source: str, most_chars: Callable[[str], int]
) -> Iterator[tuple[str, object]]:
    """The fields of the JSON object in `raw`, which begins with it, one by one.

    Each value is parsed by itself: the parser holds the interpreter's lock, so a thread that reads an
    object as a whole would hold up all others for as long. A key given twice is given twice. `most_chars`
    is of a field's value, by its key.

    Raises:
        AdapterInvalidError: `raw` is anything else, or a value is longer; `source` names it.
    """
    try:
        text = raw.decode("utf-8")
        place, sign = _behind_blanks(text, 1), ","
        if text[place : place + 1] == "}":
            place, sign = _behind_sign(text, place, "}"), "}"
        while sign == ",":
            if text[place : place + 1] != '"':
                raise ValueError(f"no key at character {place}")
            key, place = _DECODER.raw_decode(text, place)
            place = _behind_sign(text, place, ":")
            value, length = _DECODER.raw_decode(text[place : place + most_chars(key)])
            yield key, value
            place = _behind_blanks(text, place + length)
            sign = text[place : place + 1]
            place = _behind_sign(text, place, "," if sign == "," else "}")
        if place != len(text):
            raise ValueError(f"more behind its end at character {place}")
    except (ValueError, RecursionError) as error:
        raise _no_json(source, error) from error


def quoted(value: object) -> str:
    """`value` for a message: escaped and cut, whatever a hostile file put there."""
    cut = reprlib.Repr()
    cut.maxstring, cut.maxother = 100, 60
    return cut.repr(value)


def first_of(values: Sequence[object]) -> str:
    """The first of some for a message, and how many more there are."""
    return quoted(values[0]) + (f" (and {len(values) - 1} more)" if len(values) > 1 else "")


def _require_regular(mode: int, path: Path) -> None:
    if not stat.S_ISREG(mode):
        raise AdapterInvalidError(
            f"{path.name} is not a regular file; way out: put the file itself there"
        )


def require_inside(descriptor: int, path: Path, roots: Iterable[Path]) -> None:
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


def _behind_blanks(text: str, place: int) -> int:
    match = _BLANKS.match(text, place)
    return place if match is None else match.end()


def _behind_sign(text: str, place: int, sign: str) -> int:
    place = _behind_blanks(text, place)
    if text[place : place + 1] != sign:
        raise ValueError(f"no {sign!r} at character {place}")
    return _behind_blanks(text, place + 1)


def _no_json(source: str, error: ValueError | RecursionError) -> AdapterInvalidError:
    reason = quoted(str(error)) if isinstance(error, ValueError) else "nested too deeply"
    return AdapterInvalidError(f"{source} is not JSON ({reason}); way out: save the adapter again")


def _unique(pairs: list[tuple[str, object]]) -> dict[str, object]:
    made = dict(pairs)
    if len(made) != len(pairs):
        raise ValueError("a key is given twice")
    return made


def _refuse_constant(name: str) -> object:
    raise ValueError(f"{name} is no JSON number")


_DECODER = json.JSONDecoder(object_pairs_hook=_unique, parse_constant=_refuse_constant)
