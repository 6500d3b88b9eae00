"""A folder of adapters, each served under its folder's name.

Names are compared sign by sign, and nothing is normalised: a look-alike is another name.
"""

import itertools
import os
import stat
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.content import stamp_of
from chameleon_lora.adapters.convert import is_only_pickled, pickled_file
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.inspect import no_weights
from chameleon_lora.adapters.untrusted import leads_nowhere, quoted, unreadable
from chameleon_lora.errors import AdapterInvalidError, AdapterNotFoundError, AdapterUnreadableError

MAX_NAME_BYTES = 255
MOST_INNER = 100


@dataclass(frozen=True, slots=True)
class RealRoots:
    """Real paths of folders. Each is looked up when it is needed: a disk of which nothing is may hang."""

    roots: tuple[Path, ...]

    def __iter__(self) -> Iterator[Path]:
        return (Path(os.path.realpath(root)) for root in self.roots)  # of a circle, too


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
    def real_roots(self) -> RealRoots:
        """Where files of adapters may really lie, whatever links led there."""
        return RealRoots((self.root, *map(Path, self._trusted)))

    def names(self) -> tuple[str, ...]:
        """Every sub-folder that holds a configuration, sorted; hidden and unnameable ones not.

        Raises:
            AdapterNotFoundError: the root itself cannot be listed.
        """
        return tuple(name for name in sorted(self.entries()) if self.try_path(name) is not None)

    def try_path(self, name: str) -> Path | None:
        """The folder of that adapter, or None when there is none or the name is not allowed."""
        try:
            return self._try_path(name)
        except OSError:
            return None

    def try_stamp(self, name: str) -> str | None:
        """What changes when its files change; None if it has not both files, or may not be named. O(1).

        Looks at file status only (`stamp_of`).

        Raises:
            AdapterUnreadableError: its files cannot be looked at.
        """
        try:
            path = self._try_path(name)
            files = [] if path is None else [(path / file).stat() for file in self._files(path)]
        except OSError as error:
            if leads_nowhere(error):
                return None
            raise AdapterUnreadableError(
                f"adapter {name!r}: {unreadable('its folder', error)}"
            ) from error
        is_whole = files and all(stat.S_ISREG(file.st_mode) for file in files)
        return stamp_of(*files) if is_whole else None

    def _files(self, path: Path) -> tuple[str, str]:
        pickled = pickled_file(path) if self._converts_bin and is_only_pickled(path) else None
        return CONFIG_NAME, pickled or WEIGHTS_NAME

    def try_status(self, name: str) -> tuple[int, ...] | None:
        """What changes when something comes into that folder or goes; None if the name is nobody's. O(1)."""
        path = self.root / name
        try:
            status = path.lstat()
            status = path.stat() if stat.S_ISLNK(status.st_mode) and path.exists() else status
        except (OSError, ValueError):
            return None
        return status.st_mtime_ns, status.st_ino, status.st_mode

    def _try_path(self, name: str) -> Path | None:
        if not _is_allowed(name):
            return None
        path = self.root / name
        try:
            is_inside = not path.is_symlink() or self._holds(path)
            return path if is_inside and (path / CONFIG_NAME).is_file() else None
        except (ValueError, RuntimeError):  # RuntimeError: links in a circle
            return None

    def why_left_out(self, name: str) -> str | None:
        """Why an entry that has no stamp is no adapter, if it seems to be meant for one."""
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

    def entries(self) -> dict[str, bool]:
        """Everything in the folder by name, and whether it is a link.

        Raises:
            AdapterNotFoundError: it cannot be listed. Not the same as an empty one.
        """
        try:
            with os.scandir(self.root) as entries:
                return {entry.name: entry.is_symlink() for entry in entries}
        except (OSError, ValueError) as error:
            raise self._unlisted(error) from error

    def place(self) -> tuple[int, int]:
        """What changes when another folder takes the name of this one.

        Raises:
            AdapterNotFoundError: there is none.
        """
        try:
            status = self.root.stat()
        except (OSError, ValueError) as error:
            raise self._unlisted(error) from error
        return status.st_dev, status.st_ino

    def _unlisted(self, error: Exception) -> AdapterNotFoundError:
        return AdapterNotFoundError(
            f"the adapter folder {str(self.root)!r} cannot be listed ({error}); "
            "way out: create it, or give the folder that holds the adapters"
        )

    def _holds(self, path: Path) -> bool:
        place = path.resolve(strict=True)
        roots = iter(self.real_roots)
        inside = next(roots) in place.parents
        return inside or any(root in (place, *place.parents) for root in roots)


def is_name(name: str) -> bool:
    """May an adapter be called so: printable, so no NUL, no line end, no broken UTF-8, and short."""
    return name != "" and name.isprintable() and len(name.encode()) <= MAX_NAME_BYTES


def require_name(name: str) -> None:
    """Nothing if an adapter may be loaded under that name; it goes to logs, pages and metrics.

    Raises:
        AdapterInvalidError: it is empty, too long or cannot be printed.
    """
    if not is_name(name):
        raise AdapterInvalidError(
            f"lora_name is {name[:60]!r}, of {len(name)} characters; way out: give a name of 1 to "
            f"{MAX_NAME_BYTES} bytes that can be printed"
        )


def shown(name: str) -> str:
    """The name, quoted if it cannot be printed."""
    return name if is_name(name) else quoted(name)


def leads_on(name: str) -> bool:
    """Could it, put behind a folder's path, name a place outside that folder, or a hidden one?"""
    return any(part.startswith(".") or not part for part in name.replace("\\", "/").split("/"))


def _is_allowed(name: str) -> bool:
    return is_name(name) and "/" not in name and not leads_on(name) and "\\" not in name


def _inner_adapter(path: Path) -> str | None:
    """The message that the adapter lies one level down, as where a trainer saved checkpoints; None if none does."""
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
