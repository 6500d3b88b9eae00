"""Adapters by what they are to the KV cache: who holds blocks of it, and who could."""

import random
from enum import IntEnum

from chameleon_lora.policy.memory.entry import Entry, EntrySet, Tier
from chameleon_lora.policy.request import AdapterId


class Group(IntEnum):
    """What an adapter is to the KV cache. Those with blocks give them back in this order."""

    IDLE = 0
    QUEUED = 1  # waiting requests name it, or are expected to
    BUSY = 2  # requests run with it, from its slot
    PINNED = 3
    PROMOTING = 4  # the copy is under way: taking its blocks costs a wait for it
    WISHED = 5  # no blocks yet, in host memory, and queued for, expected or pinned
    WISHED_IDLE = 6  # no blocks yet, in host memory


HOLDERS = (Group.IDLE, Group.QUEUED, Group.BUSY, Group.PINNED, Group.PROMOTING)


class Groups:
    """Each adapter in the one group it belongs to, or in none. Owner: the device cache."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._members = [EntrySet() for _ in Group]
        self._group_of: dict[AdapterId, Group] = {}

    def place(self, entry: Entry, *, may_hold: bool) -> None:
        """Something about the adapter changed; `may_hold` tells whether blocks could hold it."""
        group = _group_of(entry, may_hold=may_hold)
        former = self._group_of.get(entry.adapter.id)
        if group is former:
            return
        if former is not None:
            self._members[former].put(entry, is_member=False)
            del self._group_of[entry.adapter.id]
        if group is not None:
            self._members[group].put(entry, is_member=True)
            self._group_of[entry.adapter.id] = group

    def sample(self, group: Group, count: int) -> list[Entry]:
        """All of a group if they are no more than `count`, else that many."""
        return self._members[group].sample(count, self._rng)

    def has(self, group: Group) -> bool:
        """True if somebody is in the group."""
        return bool(self._members[group])

    def holders(self) -> list[Entry]:
        """Everybody with blocks, in the order of giving them back."""
        return [entry for group in HOLDERS for entry in self._members[group]]


def _group_of(entry: Entry, *, may_hold: bool) -> Group | None:
    if entry.blocks:
        return _group_of_holder(entry)
    if not may_hold or entry.tier < Tier.HOST:
        return None
    is_wished = entry.queued or entry.is_expected or entry.is_pinned
    return Group.WISHED if is_wished else Group.WISHED_IDLE


def _group_of_holder(entry: Entry) -> Group:
    if entry.promotion is not None:
        return Group.PROMOTING
    if entry.is_pinned:
        return Group.PINNED
    if entry.running:
        return Group.BUSY
    return Group.QUEUED if entry.queued or entry.is_expected else Group.IDLE
