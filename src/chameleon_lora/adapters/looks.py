"""What a look at a folder of adapters means, given the looks before it.

Disks go away and come back, files are written while somebody looks: what is offered is not taken back
for what may be over at the next look.
"""

from collections.abc import Collection
from dataclasses import dataclass

from chameleon_lora.errors import AdapterUnreadableError

FREE_CHANGES = 4  # in a row, that are looked into at once
MOST_LOOKS = 32  # that a name which changes, or cannot be read, again and again is left alone


@dataclass(frozen=True, slots=True)
class Look:
    """What a folder of adapters held at one moment.

    Attributes:
        root: device and inode of the folder itself.
        stamps: of the adapters by name; None for one that could not be looked at.
        left_out: other names -> why they are no adapters.
        entries: all names in the folder.
    """

    root: tuple[int, int]
    stamps: dict[str, str | None]
    left_out: dict[str, str]
    entries: frozenset[str]


@dataclass(frozen=True, slots=True)
class Changes:
    """Since the looks before.

    Attributes:
        changed: names whose files are to be looked into.
        gone: names that are no more.
        awaited: names that seem to be gone, and may be back at the next look.
    """

    changed: list[str]
    gone: list[str]
    awaited: list[str]


@dataclass(frozen=True, slots=True)
class _Unrest:
    """Of a name that is looked into again and again: how often, and the looks it is left alone."""

    changes: int
    begin: int
    end: int


class KnownAdapters:
    """The adapters of a folder as they were looked into last. Owner: who offers them.

    Invariant: a name stays known until its folder is gone, or two looks in a row miss it.

    Attributes:
        stamps: name -> stamp of the files that were looked into; None if they are to be again.
    """

    def __init__(self) -> None:
        self.stamps: dict[str, str | None] = {}
        self._root: tuple[int, int] | None = None
        self._missing: frozenset[str] = frozenset()
        self._unrest: dict[str, _Unrest] = {}
        self._left_out: dict[str, str] | None = None
        self._is_agreed = True  # the last two looks left out the same, for the same reasons
        self._looks = 0

    def is_news(self, name: str, stamp: str | None) -> bool:
        """Whether these are other files than those looked into, and may be looked into now."""
        unrest = self._unrest.get(name)
        is_due = unrest is None or self._looks >= unrest.end
        return stamp is not None and is_due and self.stamps.get(name) != stamp

    @property
    def is_settled(self) -> bool:
        """Whether nothing is to be done about another look that finds the same."""
        is_quiet = self._is_agreed and not (self._missing or self._unrest)
        return is_quiet and None not in self.stamps.values()

    def compare(self, look: Look) -> Changes:
        """What is to be done about it. Changes nothing.

        More than half of all, and what left a folder of its name behind, may be away with a disk: it is
        gone if the next look misses it, too.

        Raises:
            AdapterUnreadableError: another folder, an empty one, is where the adapters were.
        """
        if self.stamps and not look.stamps and look.root != self._root:
            raise AdapterUnreadableError(
                "the folder of adapters is empty and another one than before: its disk seems to be away; "
                "way out: mount it again, or restart the server if it is to offer none"
            )
        missing = [name for name in self.stamps if name not in look.stamps]
        is_most = 2 * len(missing) > len(self.stamps)
        gone = [
            name
            for name in missing
            if name in self._missing or not (is_most or name in look.entries)
        ]
        changed = [name for name, stamp in look.stamps.items() if self.is_news(name, stamp)]
        return Changes(changed, gone, [name for name in missing if name not in gone])

    def left_out_twice(self, left_out: dict[str, str]) -> dict[str, str]:
        """Of the names that this look left out those that the one before did, too: one may be half-copied.

        At the first look all.
        """
        before = left_out if self._left_out is None else self._left_out
        twice = {name: why for name, why in left_out.items() if before.get(name) == why}
        self._left_out, self._is_agreed = left_out, twice == left_out
        return twice

    def looked_into(self, names: Collection[str]) -> None:
        """The files of these adapters were others than before and have been looked into, or could not be read."""
        for name in names:
            before = self._unrest.get(name)
            changes = 1 if before is None else before.changes + 1
            pause = 2 ** (changes - FREE_CHANGES - 1) if changes > FREE_CHANGES else 0
            self._unrest[name] = _Unrest(changes, self._looks, self._looks + min(pause, MOST_LOOKS))

    def accept(self, look: Look, changes: Changes, unread: Collection[str]) -> None:
        """What it means was done, but for the changed names whose files could not be read."""
        gone = frozenset(changes.gone)
        known = {name: stamp for name, stamp in self.stamps.items() if name not in gone}
        known |= {name: None if name in unread else look.stamps[name] for name in changes.changed}
        self.looked_into(changes.changed)
        self.stamps, self._root, self._missing = known, look.root, frozenset(changes.awaited)
        self._looks += 1
        self._unrest = {name: it for name, it in self._unrest.items() if not self._is_calm(it)}

    def _is_calm(self, unrest: _Unrest) -> bool:
        """Whether it was left alone, and then did not change for as long."""
        return self._looks > 2 * unrest.end - unrest.begin + 1
