"""Who counts as overtaken, and who is urgent."""

from chameleon_lora.policy.admission.overtaking import OvertakeGuard
from chameleon_lora.policy.queues.lanes import RequestState, Stage
from tests.policy.engine_model import request


def state(sequence: int, overtaken: int = 0) -> RequestState:
    """A waiting request."""
    return RequestState(
        request(f"r{sequence}"), None, sequence, 0.0, 0.0, 0.5, 5, 15, 10, 0, Stage.READY,
        overtaken=overtaken,
    )  # fmt: skip


def test_nobody_waits_nobody_is_urgent() -> None:
    """Without a waiting request there is nothing to count."""
    guard = OvertakeGuard(lambda: None, None, 1)
    guard.admitted(state(1))
    assert guard.urgent is None
    assert not guard.is_spent


def test_younger_admissions_are_counted_by_the_oldest() -> None:
    """Requests 5 and 6 overtake request 3; request 2 does not."""
    old = state(3)
    guard = OvertakeGuard(lambda: old, None, 2)
    for sequence in (5, 2, 6):
        assert guard.urgent is None
        guard.admitted(state(sequence))
    assert 2 == old.overtaken
    assert old is guard.urgent


def test_patience_is_spent_at_twice_the_limit() -> None:
    """Overtaken 3 times of 2 the request is urgent, 4 times nobody passes any more."""
    assert not OvertakeGuard(lambda: state(1, 3), None, 2).is_spent
    assert OvertakeGuard(lambda: state(1, 4), None, 2).is_spent


def test_the_older_of_ready_and_blocked_counts() -> None:
    """Of a ready request and one that lacks room for its adapter, the first that came is urgent."""
    old, young = state(1, 9), state(2, 9)
    assert old is OvertakeGuard(lambda: old, young, 1).urgent
    assert old is OvertakeGuard(lambda: young, old, 1).urgent
    assert old is OvertakeGuard(lambda: None, old, 1).urgent
