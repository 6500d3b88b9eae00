"""A folder of adapters, each served under its folder's name.

Names are compared sign by sign, and nothing is normalised: a look-alike is another name.
"""

import itertools
import os
import stat
from collections.abc import Collection, Sequence
from pathlib import Path

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.convert import is_only_pickled, pickled_file
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.inspect import no_weights
from chameleon_lora.adapters.untrusted import quoted
from chameleon_lora.errors import AdapterNotFoundError

MAX_NAME_BYTES = 255
MOST_INNER = 100


class AdapterFolder:
    """The adapters below one root. Holds nothing but the path: each answer is the disk's.

    Invariant: no answer names a path whose real place is outside the root and the trusted roots.
    """

    def __init__(
        self, root: Path, trusted: Sequence[str] = (), *, converts_bin: bool = False
    ) -> None:
        self.root = root
        self._trusted = trusted
        self._converts_bin = converts_bin  # so a folder of pickled weights is one of the adapters

    @property
    def real_roots(self) -> tuple[Path, ...]:
        """Where files of adapters may really lie, whatever links led there."""
        return self.root.resolve(), *(Path(root).resolve() for root in self._trusted)

    def names(self) -> tuple[str, ...]:
        """Every sub-folder that holds a configuration, sorted; hidden and unnameable ones not.

        Raises:
            AdapterNotFoundError: the root itself cannot be listed.
        """
        return tuple(name for name in self._entries() if self.try_path(name) is not None)

    def try_path(self, name: str) -> Path | None:
        """The folder of that adapter, or None when there is none or the name is not allowed."""
        if not _is_allowed(name):
            return None
        path = self.root / name
        try:
            is_inside = not path.is_symlink() or self._holds(path)
            return path if is_inside and (path / CONFIG_NAME).is_file() else None
        except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle
            return None

    def try_stamp(self, name: str) -> str | None:
        """What `scan` says of that name, or None if it does not name it. O(1)."""
        path = self.try_path(name)
        if path is None:
            return None
        pickled = self._converts_bin and is_only_pickled(path) and pickled_file(path)
        stamps = [_try_stamp(path / file) for file in (CONFIG_NAME, pickled or WEIGHTS_NAME)]
        return None if None in stamps else " ".join(filter(None, stamps))

    def scan(self) -> dict[str, str]:
        """Name -> what changes when its files change, for folders that hold both files.

        Looks at file status only: size, time of change and inode. One call is O(adapters).

        Raises:
            AdapterNotFoundError: the root itself cannot be listed. Not the same as an empty root.
        """
        stamps = ((name, self.try_stamp(name)) for name in self._entries())
        return {name: stamp for name, stamp in stamps if stamp is not None}

    def left_out(self, seen: Collection[str]) -> dict[str, str]:
        """Name -> why it is no adapter, for folders `scan` leaves out that seem to be meant for one.

        A name that cannot be printed is quoted. O(entries), and up to MOST_INNER for each left out.
        """
        others = [name for name in self._entries() if name not in seen and not name.startswith(".")]
        found = {name: self._why_left_out(name) for name in others}
        return {n if is_name(n) else quoted(n): why for n, why in found.items() if why is not None}

    def _why_left_out(self, name: str) -> str | None:
        path = self.root / name
        why = None
        try:
            if not path.is_dir():
                pass
            elif not _is_allowed(name):
                why = "an adapter's name is printable and holds no backslash; way out: rename it"
            elif path.is_symlink() and not self._holds(path):
                why = (
                    "it is a link that leads out of the folder of adapters; way out: put a copy "
                    "there, or name where it leads in serving.trusted_roots"
                )
            elif not (path / CONFIG_NAME).exists():
                why = _inner_adapter(path)
            elif (path / CONFIG_NAME).is_file():
                why = no_weights(path)
            else:
                why = f"{CONFIG_NAME} is no regular file; way out: put the file itself there"
        except (OSError, ValueError, RuntimeError):  # RuntimeError: links in a circle
            why = "it cannot be looked into; way out: check its links and the server's rights"
        return why

    def _entries(self) -> list[str]:
        try:
            return sorted(entry.name for entry in self.root.iterdir())
        except (OSError, ValueError) as error:
            raise AdapterNotFoundError(
                f"the adapter folder {str(self.root)!r} cannot be listed ({error}); "
                "way out: create it, or give the folder that holds the adapters"
            ) from error

    def _holds(self, path: Path) -> bool:
        place = path.resolve(strict=True)
        root, *trusted = self.real_roots
        return root in place.parents or any(r in (place, *place.parents) for r in trusted)


def is_name(name: str) -> bool:
    """May an adapter be called so: printable, so no NUL, no line end, no broken UTF-8, and short."""
    return name != "" and name.isprintable() and len(name.encode()) <= MAX_NAME_BYTES


def leads_on(name: str) -> bool:
    """Could it, put behind a folder's path, name a place outside that folder, or a hidden one?"""
    return any(part.startswith(".") or not part for part in name.replace("\\", "/").split("/"))


def _is_allowed(name: str) -> bool:
    return is_name(name) and "/" not in name and not leads_on(name) and "\\" not in name


def _inner_adapter(path: Path) -> str | None:
    """That the adapter lies one level down, as where a trainer saved checkpoints; None if none does."""
    with os.scandir(path) as entries:
        first = [entry.name for entry in itertools.islice(entries, MOST_INNER)]
    inner = [name for name in first if (path / name / CONFIG_NAME).is_file()]
    if not inner:
        return None
    newest = max(inner, key=lambda name: (len(name), name))  # the highest number of a step
    return (
        f"it holds no {CONFIG_NAME}, but its sub-folder {newest!r} does; way out: move the folder "
        "you want up to where this one is"
    )


def _try_stamp(path: Path) -> str | None:
    try:
        status = path.stat()
    except OSError:
        return None
    if not stat.S_ISREG(status.st_mode):
        return None
    return f"{status.st_mtime_ns:x}-{status.st_size:x}-{status.st_ino:x}"
