"""A folder of adapters, each served under its folder's name.

Names are compared sign by sign, and nothing is normalised: a look-alike is another name.
"""

import itertools
import os
import stat
from collections.abc import Sequence
from pathlib import Path

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.content import stamp_of
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.inspect import no_weights
from chameleon_lora.adapters.looks import Look
from chameleon_lora.adapters.untrusted import leads_nowhere, quoted, unreadable
from chameleon_lora.errors import AdapterNotFoundError, AdapterUnreadableError

MAX_NAME_BYTES = 255
MOST_INNER = 100


class AdapterFolder:
    """The adapters below one root. Holds nothing but the path: each answer is the disk's.

    Invariant: no answer names a path whose real place is outside the root and the trusted roots.
    """

    def __init__(self, root: Path, trusted: Sequence[str] = ()) -> None:
        self.root = root
        self._trusted = trusted

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
        try:
            return self._try_path(name)
        except OSError:
            return None

    def try_stamp(self, name: str) -> str | None:
        """What `scan` says of that name, or None if it does not name it. O(1).

        Raises:
            AdapterUnreadableError: its files cannot be looked at.
        """
        try:
            path = self._try_path(name)
            files = [(path / file).stat() for file in (CONFIG_NAME, WEIGHTS_NAME)] if path else []
        except OSError as error:
            if leads_nowhere(error):
                return None
            raise AdapterUnreadableError(
                f"adapter {name!r}: {unreadable('its folder', error)}"
            ) from error
        is_whole = files and all(stat.S_ISREG(file.st_mode) for file in files)
        return stamp_of(*files) if is_whole else None

    def scan(self) -> dict[str, str]:
        """Name -> what changes when its files change, for folders that hold both files.

        Looks at file status only (`stamp_of`). One call is O(adapters).

        Raises:
            AdapterNotFoundError: the root itself cannot be listed. Not the same as an empty root.
        """
        stamps = self._stamps(self._entries())
        return {name: stamp for name, stamp in stamps.items() if stamp is not None}

    def look(self) -> Look:
        """All of it at once, as `KnownAdapters` wants it.

        Raises:
            AdapterNotFoundError: the root itself cannot be listed.
        """
        try:
            root = self.root.stat()
        except OSError as error:
            raise self._unlisted(error) from error
        entries = self._entries()
        stamps = self._stamps(entries)
        left_out = self._left_out([name for name in entries if stamps.get(name) is None])
        return Look((root.st_dev, root.st_ino), stamps, left_out, frozenset(entries))

    def _try_path(self, name: str) -> Path | None:
        if not _is_allowed(name):
            return None
        path = self.root / name
        try:
            is_inside = not path.is_symlink() or self._holds(path)
            return path if is_inside and (path / CONFIG_NAME).is_file() else None
        except (ValueError, RuntimeError):  # RuntimeError: links in a circle
            return None

    def _stamps(self, names: Sequence[str]) -> dict[str, str | None]:
        """Of the adapters among them; None for one that cannot be looked at."""
        found: dict[str, str | None] = {}
        for name in names:
            try:
                stamp = self.try_stamp(name)
            except AdapterUnreadableError:
                found[name] = None
            else:
                found |= {name: stamp} if stamp is not None else {}
        return found

    def _left_out(self, names: Sequence[str]) -> dict[str, str]:
        """Name -> why it is no adapter, for those which seem to be meant for one.

        A name that cannot be printed is quoted. Up to MOST_INNER entries of each are seen.
        """
        others = [name for name in names if not name.startswith(".")]
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
            raise self._unlisted(error) from error

    def _unlisted(self, error: Exception) -> AdapterNotFoundError:
        return AdapterNotFoundError(
            f"the adapter folder {str(self.root)!r} cannot be listed ({error}); "
            "way out: create it, or give the folder that holds the adapters"
        )

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
