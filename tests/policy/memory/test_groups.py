"""What an adapter is to the KV cache."""

import random
from typing import Any

import pytest

from chameleon_lora.policy.memory.entry import Entry, Tier
from chameleon_lora.policy.memory.groups import HOLDERS, Group, Groups
from tests.policy.engine_model import adapter


def entry(number: int = 1, **fields: Any) -> Entry:
    """An adapter in host memory, otherwise as told."""
    return Entry(adapter(number), **{"tier": Tier.HOST, **fields})


@pytest.mark.parametrize(
    ("fields", "expected"),
    [
        ({"blocks": 2}, Group.IDLE),
        ({"blocks": 2, "queued": 1}, Group.QUEUED),
        ({"blocks": 2, "is_expected": True}, Group.QUEUED),
        ({"blocks": 2, "queued": 1, "running": 1}, Group.BUSY),
        ({"blocks": 2, "queued": 1, "running": 1, "is_pinned": True}, Group.PINNED),
        ({"blocks": 2, "queued": 1, "is_pinned": True, "promotion": 7}, Group.PROMOTING),
        ({"queued": 1}, Group.WISHED),
        ({"is_pinned": True}, Group.WISHED),
        ({"is_expected": True}, Group.WISHED),
        ({"tier": Tier.SLOT, "running": 1}, Group.WISHED_IDLE),
        ({}, Group.WISHED_IDLE),
        ({"tier": Tier.LOADING, "queued": 1}, None),
        ({"tier": Tier.DISK, "is_pinned": True}, None),
    ],
)
def test_group_of_an_adapter(fields: dict[str, Any], expected: Group | None) -> None:
    """The last to be asked for its blocks is decided by what would be lost with them."""
    groups, known = Groups(random.Random(0)), entry(**fields)
    groups.place(known, may_hold=True)
    assert [g for g in Group if groups.sample(g, 9)] == ([] if expected is None else [expected])


def test_what_blocks_cannot_hold_is_in_no_group() -> None:
    """An adapter too large, or not packed, is never proposed."""
    groups, known = Groups(random.Random(0)), entry(queued=1)
    groups.place(known, may_hold=True)
    groups.place(known, may_hold=False)
    assert [] == [g for g in Group if groups.sample(g, 9)]


def test_a_holder_stays_one_though_it_could_not_become_one() -> None:
    """Who has blocks is found until they are given back."""
    groups, known = Groups(random.Random(0)), entry(blocks=1)
    groups.place(known, may_hold=False)
    assert [known] == groups.holders()


def test_an_adapter_moves_from_group_to_group() -> None:
    """It is in one at a time; placing it twice changes nothing."""
    groups, known = Groups(random.Random(0)), entry()
    for blocks, promotion, expected in (
        (0, None, Group.WISHED_IDLE),
        (3, 1, Group.PROMOTING),
        (3, None, Group.IDLE),
        (3, None, Group.IDLE),
        (0, None, Group.WISHED_IDLE),
    ):
        known.blocks, known.promotion = blocks, promotion
        groups.place(known, may_hold=True)
        assert [expected] == [g for g in Group if groups.sample(g, 9)]


def test_holders_are_told_in_the_order_of_giving_back() -> None:
    """Idle ones first, those under way last; who has no blocks is none."""
    groups = Groups(random.Random(0))
    members = [
        entry(1, blocks=1, promotion=1),
        entry(2, blocks=1, is_pinned=True),
        entry(3, blocks=1, running=1),
        entry(4, blocks=1, queued=1),
        entry(5, blocks=1),
        entry(6),
    ]
    for member in members:
        groups.place(member, may_hold=True)
    assert [5, 4, 3, 2, 1] == [holder.adapter.id for holder in groups.holders()]
    assert sorted(HOLDERS) == list(HOLDERS)


def test_a_sample_is_bounded() -> None:
    """Of a hundred, as many as asked for, each once."""
    groups = Groups(random.Random(0))
    for number in range(100):
        groups.place(entry(number), may_hold=True)
    found = groups.sample(Group.WISHED_IDLE, 8)
    assert 8 == len({member.adapter.id for member in found}) == len(found)
