"""How a request ended: right, wrong, told why, or lost."""

import pytest

from chameleon_lora.bench.client import Answer
from faults.greedy_request import GreedyRequest, RequestEnd, reply_of

ASKED = GreedyRequest("a0", seed=1, tokens=3)
KNOWN = (7, 8, 9)
EVENT = 'stream broken off: {"message":"Adapter \'a\' cannot be loaded: it is broken"}'


def end(token_ids: list[int], error: str | None = None) -> RequestEnd:
    """How an answer of these tokens ended."""
    answer = Answer(token_ids=token_ids, error=error)
    return reply_of(ASKED, answer, began_s=0.0, ended_s=1.0).end(KNOWN)


def test_a_whole_answer_is_right_if_each_token_is() -> None:
    """Fewer tokens than asked for, or others, are wrong."""
    assert RequestEnd.RIGHT is end([7, 8, 9])
    assert [RequestEnd.WRONG] * 3 == [end([7, 8]), end([7, 8, 1]), end([])]


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        ('HTTP 404 for \'a0\': {"error":{"message":"no such model"}}', RequestEnd.TOLD),
        ("HTTP 502 for 'a0': nothing", RequestEnd.LOST),
        (EVENT, RequestEnd.TOLD),
        ("stream broken off: it ended without [DONE]", RequestEnd.LOST),
        ("connection lost: ServerDisconnectedError", RequestEnd.LOST),
        ("given up: no whole answer after 120 s", RequestEnd.LOST),
        ("no token: the answer was whole, and empty", RequestEnd.LOST),
        ("connection refused: 127.0.0.1", RequestEnd.REFUSED),
    ],
)
def test_an_error_must_be_the_servers_own_and_give_a_reason(
    error: str, expected: RequestEnd
) -> None:
    """Else the request is lost; where nobody listened it was never taken."""
    assert expected is end([], error)


def test_an_error_after_wrong_tokens_does_not_make_up_for_them() -> None:
    """What was streamed before it must be right as far as it goes."""
    assert (RequestEnd.TOLD, RequestEnd.WRONG) == (end([7, 8], EVENT), end([7, 1], EVENT))


def test_silence_is_the_longest_time_without_a_token() -> None:
    """Before the first one, between two of them, or between the last and the error."""
    times_s = [1.0, 1.5, 4.0]
    whole = reply_of(ASKED, Answer(token_times_s=times_s), 0.0, 9.0)
    late = reply_of(ASKED, Answer(token_times_s=times_s), -3.0, 9.0)
    broken = reply_of(ASKED, Answer(token_times_s=times_s, error=EVENT), 0.0, 9.0)
    never = reply_of(ASKED, Answer(error=EVENT), 1.0, 9.0)
    assert [2.5, 4.0, 5.0, 8.0] == [r.silence_s for r in (whole, late, broken, never)]
