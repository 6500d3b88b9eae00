"""Who counts as overtaken, and who is urgent."""

from tests.policy.engine_model import request

from chameleon_lora.policy.lanes import Stage, Ticket
from chameleon_lora.policy.patience import Patience


def ticket(sequence: int, overtaken: int = 0) -> Ticket:
    """A waiting ticket."""
    return Ticket(
        request(f"r{sequence}"), None, sequence, 0.0, 0.0, 0.5, 5, 15, 10, 0, Stage.READY,
        overtaken=overtaken,
    )  # fmt: skip


def test_nobody_waits_nobody_is_urgent() -> None:
    """Without a waiting request there is nothing to count."""
    patience = Patience(lambda: None, None, 1)
    patience.admitted(ticket(1))
    assert patience.urgent is None
    assert not patience.is_spent


def test_younger_admissions_are_counted_by_the_oldest() -> None:
    """Requests 5 and 6 overtake request 3; request 2 does not."""
    old = ticket(3)
    patience = Patience(lambda: old, None, 2)
    for sequence in (5, 2, 6):
        assert patience.urgent is None
        patience.admitted(ticket(sequence))
    assert 2 == old.overtaken
    assert old is patience.urgent


def test_patience_is_spent_at_twice_the_limit() -> None:
    """Overtaken 3 times of 2 the request is urgent, 4 times nobody passes any more."""
    assert not Patience(lambda: ticket(1, 3), None, 2).is_spent
    assert Patience(lambda: ticket(1, 4), None, 2).is_spent


def test_the_older_of_ready_and_blocked_counts() -> None:
    """Of a ready request and one that lacks room for its adapter, the first that came is urgent."""
    old, young = ticket(1, 9), ticket(2, 9)
    assert old is Patience(lambda: old, young, 1).urgent
    assert old is Patience(lambda: young, old, 1).urgent
    assert old is Patience(lambda: None, old, 1).urgent
