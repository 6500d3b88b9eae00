"""What a folder of adapters holds, kept up to date by looking at no more than may have changed.

Linux tells of it (inotify), with a watch for the folder and one for each folder in it. It tells nothing
of what other machines write to a network mount, of what links lead to, and of folders it has no watch
left for: at those each look looks, and now and then at all.
"""

import contextlib
import errno
import logging
import weakref
from pathlib import Path
from typing import Any

import psutil
from inotify_simple import INotify, flags

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.convert import PICKLED_NAMES
from chameleon_lora.adapters.folder import AdapterFolder, shown
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.looks import Look
from chameleon_lora.errors import AdapterUnreadableError

LOCAL = frozenset(
    {"bcachefs", "btrfs", "ext2", "ext3", "ext4", "f2fs", "jfs", "overlay", "tmpfs", "xfs", "zfs"}
)
"""File systems to which nobody writes but by this machine's kernel, which tells of it."""
_ENTRIES = flags.CREATE | flags.DELETE | flags.MOVED_FROM | flags.MOVED_TO | flags.ATTRIB
_FILES = _ENTRIES | flags.MODIFY | flags.CLOSE_WRITE | flags.DONT_FOLLOW | flags.EXCL_UNLINK
_FILE_NAMES = (CONFIG_NAME, WEIGHTS_NAME, *PICKLED_NAMES)
_WAY_OUT = "each look is at those; way out: raise fs.inotify.max_user_watches and max_user_instances (sysctl)"
_logger = logging.getLogger(f"vllm.{__name__}")


class FolderEvents:
    """The kernel's events of a folder and of the folders in it. No link is followed.

    Invariant: `_names` has the watches that live, and the entry of each; "" is the folder itself.

    Raises:
        OSError: there is no watch left for the folder, or no right to read it.
    """

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._device = root.stat().st_dev
        self._inotify: Any = INotify(nonblocking=True)
        self.close = weakref.finalize(self, self._inotify.close)  # afterwards all watches are free
        self._watches: dict[str, int] = {}
        self._names: dict[int, str] = {}
        self._own = self._inotify.add_watch(self._root, _ENTRIES | flags.ONLYDIR)
        self._names[self._own] = ""

    def follow(self, name: str) -> bool:
        """Whether events will tell of all that is done to this entry from now on.

        Raises:
            OSError: they will not, for no watch is left.
        """
        path, watch = Path(self._root, name), None
        try:
            watch = self._inotify.add_watch(path, _FILES | flags.ONLYDIR)
            has_links = any((path / file).is_symlink() for file in _FILE_NAMES)
            return path.lstat().st_dev == self._device and not has_links
        except OSError as error:
            if error.errno == errno.ENOSPC:
                raise
            is_no_folder = error.errno in (errno.ENOENT, errno.ENOTDIR)
            return is_no_folder and not path.is_symlink()
        finally:
            self._remember(name, watch)

    def take(self) -> set[str] | None:
        """The entries to which something was done since the last call.

        None if these events are of no more use: it was too much to tell, or the folder has gone.
        """
        names: set[str] = set()
        for event in self._inotify.read(timeout=0):
            if event.mask & (flags.Q_OVERFLOW | flags.UNMOUNT):
                return None
            if event.mask & flags.IGNORED:
                self._names.pop(event.wd, None)
            elif event.wd in self._names:
                names.add(self._names[event.wd] or event.name)
        return names - {""} if self._own in self._names else None

    def _remember(self, name: str, watch: int | None) -> None:
        """A watch is a folder's, whatever that is called by now; that of one that went is given back."""
        former = self._watches.pop(name, None)
        if former is not None and former != watch and self._names.get(former) == name:
            del self._names[former]
            with contextlib.suppress(OSError):
                self._inotify.rm_watch(former)
        if watch is not None:
            self._watches[name], self._names[watch] = watch, name


class FolderWatch:
    """The adapters of a folder as they were when last looked at. Owner: the registry.

    Any call may hang for as long as a disk does. `look_at` may be called while others hang.
    At most `scan_all_s` pass between two looks at all entries; 0 for no events at all.
    """

    def __init__(self, folder: AdapterFolder, scan_all_s: float) -> None:
        self.root = folder.root
        self._folder = folder
        self._scan_all_s = scan_all_s
        self._place: tuple[int, int] | None = None  # of the root: another may get its name
        self._events: FolderEvents | None = None
        self._round = 0
        self._round_s = float("-inf")
        self._owed: set[str] = set()  # due, and not looked at yet
        self._recent: set[str] = set()  # something was done to them just before the last look
        self._untold: set[str] = set()  # events do not tell of them
        self._is_full = False  # no watch was left
        self._stamps: dict[str, str | None] = {}
        self._look: Look | None = None
        self._others: dict[str, tuple[object, str | None]] = {}  # what they were, why they are none

    def due(self, now_s: float) -> list[str]:
        """Entries to look at, those last that may hang. What changed is due twice: it may go on changing.

        Raises:
            AdapterNotFoundError: the folder itself cannot be listed.
        """
        happened = self._happened()
        if now_s - self._round_s >= self._scan_all_s:
            self._round_s, self._round, happened = now_s, self._round + 1, None
        if happened is None:
            entries = self._folder.entries()
            self._owed.update(entries, self._stamps.copy(), self._others.copy())
            self._untold.update(name for name, is_link in entries.items() if is_link)
        self._owed.update(happened or (), self._recent, self._untold)
        self._recent = happened or set()
        due = [name for name in self._owed.copy() if not name.startswith(".")]
        return sorted(due, key=lambda name: (name in self._untold, name))

    def look_at(self, name: str) -> None:
        """Take up what an entry is now."""
        self._owed.discard(name)  # first: what happens while it hangs makes it due again
        is_told = self._is_told(name)  # and what happens after the look is an event
        try:
            stamp, is_readable = self._folder.try_stamp(name), True
        except AdapterUnreadableError:
            stamp, is_readable = None, False
            self._owed.add(name)
        if stamp is None and is_readable:
            self._stamps.pop(name, None)
        else:
            self._stamps[name] = stamp
        if stamp is None:
            self._look_at_other(name)
        else:
            self._others.pop(name, None)
        (self._untold.discard if is_told else self._untold.add)(name)
        self._look = None

    def may_hang(self, name: str) -> bool:
        """Whether a look at it may lead to another disk than that of the folder."""
        return name in self._untold

    def look(self) -> Look:
        """What all looks found, the same object while nothing was looked at."""
        look = self._look
        if look is None or look.root != self._place:
            stamps, others = self._stamps.copy(), self._others.copy()
            left_out = {shown(name): why for name, (_, why) in others.items() if why is not None}
            assert self._place is not None
            look = self._look = Look(self._place, stamps, left_out, frozenset((*stamps, *others)))
        return look

    def _look_at_other(self, name: str) -> None:
        """Why it is no adapter is found out where the folder itself changed, and once in a round."""
        status = self._folder.try_status(name)
        if status is None:
            self._others.pop(name, None)
        elif self._others.get(name, (None,))[0] != (status, self._round):
            self._others[name] = (status, self._round), self._folder.why_left_out(name)

    def _happened(self) -> set[str] | None:
        """The entries to which something was done; None if that is not known."""
        place = self._folder.place()
        happened = None if self._events is None else self._events.take()
        if place != self._place or (self._events is not None and happened is None):
            if self._events is not None:
                self._events.close()
            self._events, self._is_full, self._place = self._try_events(), False, place
            return None
        return happened

    def _try_events(self) -> FolderEvents | None:
        """The events of the folder as it is now; None where they would not tell of everything."""
        root = self._folder.root
        if not self._scan_all_s:
            return None
        kind = file_system_of(root)
        if kind not in LOCAL:
            _logger.info("%r is on %s: each look is at all of its adapters", str(root), kind)
            return None
        try:
            return FolderEvents(root)
        except OSError as error:
            _logger.warning("No file system events of %r: %s; %s", str(root), error, _WAY_OUT)
            return None

    def _is_told(self, name: str) -> bool:
        try:
            return self._events is None or self._events.follow(name)
        except OSError as error:
            if not self._is_full:
                self._is_full = True
                told = (str(self._folder.root), error, _WAY_OUT)
                _logger.warning("No file system events of all folders in %r: %s; %s", *told)
            return False


def file_system_of(path: Path) -> str:
    """Of what kind a path's file system is, as the kernel calls it."""
    place = path.resolve()
    mounts = [(Path(mount.mountpoint), mount.fstype) for mount in psutil.disk_partitions(all=True)]
    holding = [(len(m.parts), kind) for m, kind in mounts if m in (place, *place.parents)]
    return max(reversed(holding), key=lambda mount: mount[0], default=(0, "unknown"))[1]
