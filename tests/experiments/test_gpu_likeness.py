"""Tokens of one engine beside those of another."""

from experiments.gpu.likeness import Likeness, is_anothers, likeness, shared_length

KNOWN = {"a": [5, 6, 7, 8], "b": [5, 9, 7, 8], "c": [1, 2, 3, 4]}


def test_likeness_counts_whole_answers_and_first_tokens() -> None:
    """And names the places that differ."""
    expected = [[1, 2], [3, 4], [5, 6]]
    assert Likeness(3, 1, 2, (1, 2)) == likeness(expected, [[1, 2], [3, 5], [6, 6]])


def test_an_answer_that_follows_another_adapters_is_seen() -> None:
    """Also where both begin alike."""
    assert is_anothers(KNOWN["c"], "a", KNOWN)
    assert is_anothers([5, 9, 7, 1], "a", KNOWN)


def test_an_answer_that_leaves_its_own_late_or_for_nobodys_is_not_anothers() -> None:
    """Numbers that differ in the last place change a token now and then."""
    assert not is_anothers([5, 6, 7, 1], "a", KNOWN)
    assert not is_anothers([9, 9, 9, 9], "a", KNOWN)
    assert not is_anothers([5, 9, 1, 1], "a", KNOWN)


def test_the_shared_length_ends_at_the_first_difference_or_at_the_shorter_end() -> None:
    """However long the other is."""
    assert [2, 2, 0] == [shared_length([1, 2], other) for other in ([1, 2, 3], [1, 2], [2])]
