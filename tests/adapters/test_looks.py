"""What looks at a folder come to: what has changed, what is gone, and what may only be away."""

import itertools

import pytest

from chameleon_lora.adapters.looks import FREE_CHANGES, MOST_LOOKS, Changes, KnownAdapters, Look
from chameleon_lora.errors import AdapterUnreadableError

HERE, ELSEWHERE = (1, 1), (2, 1)


def look(stamps: dict[str, str | None], *, others: str = "", root: tuple[int, int] = HERE) -> Look:
    """One with these stamps, and other entries beside."""
    return Look(root, stamps, {}, frozenset(stamps) | frozenset(others))


def after(known: KnownAdapters, seen: Look, unread: str = "") -> Changes:
    """What it means; all of it is done."""
    changes = known.compare(seen)
    known.accept(seen, changes, unread)
    return changes


@pytest.fixture
def known() -> KnownAdapters:
    """Of a folder with a, b and c."""
    known = KnownAdapters()
    after(known, look(dict.fromkeys("abc", "1")))
    return known


def test_new_and_other_stamps_are_changes(known: KnownAdapters) -> None:
    """Each once."""
    seen = look({"a": "1", "b": "2", "c": "1", "d": "1"})
    assert Changes(["b", "d"], [], []) == after(known, seen)
    assert Changes([], [], []) == after(known, seen)


def test_a_folder_that_goes_alone_is_gone(known: KnownAdapters) -> None:
    """At once: somebody took it away."""
    assert Changes([], ["c"], []) == after(known, look({"a": "1", "b": "1"}))
    assert {"a", "b"} == known.stamps.keys()


def test_an_empty_folder_in_an_adapters_place_is_awaited(known: KnownAdapters) -> None:
    """It may be where a disk was mounted; the second look decides."""
    seen = look({"a": "1", "b": "1"}, others="c")
    assert Changes([], [], ["c"]) == after(known, seen)
    assert Changes([], [], []) == after(known, look(dict.fromkeys("abc", "1")))
    assert Changes([], [], ["c"]) == after(known, seen)
    assert Changes([], ["c"], []) == after(known, seen)


def test_more_than_half_are_awaited(known: KnownAdapters) -> None:
    """Two of three may have gone with a disk; those that are back were never away."""
    assert Changes([], [], ["a", "b"]) == after(known, look({"c": "1"}))
    assert Changes([], ["a"], []) == after(known, look({"b": "1", "c": "1"}))
    assert Changes([], ["c"], []) == after(known, look({"b": "1"}))  # half is not more


def test_another_folder_that_holds_adapters_is_taken_for_what_it_is(known: KnownAdapters) -> None:
    """A link that leads elsewhere now, or a folder that was made anew: only an empty one may be a lost disk."""
    seen = look({"a": "1", "b": "1", "d": "1"}, root=ELSEWHERE)
    assert Changes(["d"], ["c"], []) == after(known, seen)


def test_another_empty_folder_takes_nothing_back(known: KnownAdapters) -> None:
    """However often it is looked at; what comes there is compared with what was known."""
    for _ in range(3):
        with pytest.raises(AdapterUnreadableError, match="its disk seems to be away"):
            known.compare(look({}, root=ELSEWHERE))
    assert Changes([], [], []) == after(known, look(dict.fromkeys("abc", "1")))
    assert Changes([], [], ["a", "b", "c"]) == known.compare(look({}))


def test_what_cannot_be_looked_at_is_as_before(known: KnownAdapters) -> None:
    """Neither changed nor gone; a new one is no news until it can be."""
    assert Changes([], [], []) == after(known, look({"a": None, "b": "1", "c": "1", "d": None}))
    assert "d" not in known.stamps
    assert Changes(["d"], [], []) == after(known, look({**dict.fromkeys("abc", "1"), "d": "1"}))


def test_what_could_not_be_read_is_looked_into_again(known: KnownAdapters) -> None:
    """At the next looks, though nothing else happens to it; then ever more seldom."""
    seen = look({"a": "2", "b": "1", "c": "1"})
    for _ in range(FREE_CHANGES + 1):
        assert Changes(["a"], [], []) == after(known, seen, unread="a")
    assert ["", "a", "", "", "", "a"] == [
        "".join(after(known, seen, unread="a").changed) for _ in range(6)
    ]
    found = [after(known, seen).changed for _ in range(20)]
    assert [*[[]] * 7, ["a"], *[[]] * 12] == found


def test_what_changes_at_each_look_is_looked_into_ever_more_seldom(known: KnownAdapters) -> None:
    """A few times at once, then with growing pauses that have a bound; others are not held up."""
    checked = []
    for number in range(200):
        stamps = {"a": f"{number}", "b": "1", "c": "1", "d": f"{number // 100}"}
        changes = after(known, look(dict(stamps)))
        checked += [number] * ("a" in changes.changed)
        assert ("d" in changes.changed) is (number in (0, 100))
    pauses = [later - earlier for earlier, later in itertools.pairwise(checked)]
    free = [1] * FREE_CHANGES
    assert [*free, 2, 4, 8, 16, MOST_LOOKS, MOST_LOOKS] == pauses[: FREE_CHANGES + 6]


def test_what_has_come_to_rest_is_looked_into_at_once_again(known: KnownAdapters) -> None:
    """And nothing of its past is kept."""
    for number in range(20):
        after(known, look({"a": f"{number}", "b": "1", "c": "1"}))
    rest = look({"a": "last", "b": "1", "c": "1"})
    found = [after(known, rest).changed for _ in range(3 * MOST_LOOKS)]
    assert 1 == found.count(["a"])
    assert {} == known._unrest
    assert ["a"] == after(known, look({"a": "new", "b": "1", "c": "1"})).changed


def test_what_is_left_out_is_told_at_the_second_look() -> None:
    """At the first one too; nothing is settled while two looks do not agree."""
    known = KnownAdapters()
    told = []
    for why in ("half", "no weights", "no weights"):
        twice = known.left_out_twice({"x": why})
        told.append((twice, known.is_settled))
    assert [({"x": "half"}, True), ({}, False), ({"x": "no weights"}, True)] == told
