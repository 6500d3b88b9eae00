"""Server-sent events, by the words of their specification."""

from itertools import pairwise

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.bench.event_stream import LONGEST_LINE_BYTES, EventStream

ODD = (
    b"\xef\xbb\xbfdata: first\n\n: a comment\r\n\r\ndata:second\r\r"
    b"event: x\nid: 3\ndata: third\ndata:  line two\n\ndata\n\nretry: 5\n\n"
    b"data\ndata: after an empty line\n\ndata: a\r\ndata: b\r\n\r\nother: data: no\n\ndata: [DONE]\n\n"
)
EVENTS = [b"first", b"second", b"third\n line two", b"\nafter an empty line", b"a\nb", b"[DONE]"]


@pytest.mark.parametrize(
    ("stream", "expected"),
    [
        (b"data: x\n\n", [b"x"]),
        (b"data:x\n\n", [b"x"]),
        (b"data:  x\n\n", [b" x"]),
        (b"data: x\r\n\r\n", [b"x"]),
        (b"data: x\r\r", [b"x"]),
        (b"data: x\ndata: y\n\n", [b"x\ny"]),
        (b": ping\n\ndata: x\n\n", [b"x"]),
        (b"data: x\n: ping\n\n", [b"x"]),
        (b"event: token\nid: 1\nretry: 9\ndata: x\n\n", [b"x"]),
        (b"data: x\n\ndata: y\n\n", [b"x", b"y"]),
        (b"data: x\n", []),
        (b"data: x", []),
        (b"data:\n\n", []),
        (b"database: x\n\n", []),
        (b"\n\n\n", []),
        (b"", []),
    ],
)
def test_events_are_what_the_specification_says(stream: bytes, expected: list[bytes]) -> None:
    """One space after the colon goes, comments and other fields go, a blank line ends an event."""
    assert expected == EventStream().feed(stream)


@given(st.lists(st.integers(0, len(ODD)), max_size=30))
def test_it_does_not_matter_how_the_network_cuts(places: list[int]) -> None:
    """Also in the middle of a line end or a byte order mark after its first byte."""
    events = EventStream()
    cuts = [0, *sorted(place for place in places if place > 2), len(ODD)]
    fed = [events.feed(ODD[a:b]) for a, b in pairwise(cuts)]
    assert EVENTS == [event for some in fed for event in some]


def test_bytes_may_come_one_by_one() -> None:
    """A CR and its LF in two pieces end one line."""
    events = EventStream()
    fed = [events.feed(ODD[at : at + 1]) for at in range(3, len(ODD))]
    assert EVENTS == [event for some in fed for event in some]


@pytest.mark.parametrize("end", [b"", b"\n", b"\r\n"])
def test_an_event_without_its_blank_line_can_be_asked_for(end: bytes) -> None:
    """Some servers end right after [DONE]."""
    events = EventStream()
    assert [] == events.feed(b"data: [DONE]" + end)
    assert b"[DONE]" == events.unfinished()


def test_a_line_without_end_is_refused() -> None:
    """A server cannot fill the client's memory."""
    events = EventStream()
    with pytest.raises(ValueError, match="a line of more than 1048576 bytes"):
        events.feed(b"x" * (LONGEST_LINE_BYTES + 1))
