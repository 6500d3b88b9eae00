"""Times between tokens gathered by steps, against a list of each request's own."""

from collections import Counter
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.sim.gaps import TokenGaps

Action = tuple[str, int]
ACTIONS = st.lists(
    st.tuples(st.sampled_from(("join", "join once", "decode", "leave", "back")), st.integers(1, 4)),
    max_size=30,
)


@dataclass
class PlainGaps:
    """A request: when it joined last, and when it got its last token."""

    joined_s: float
    last_s: float


def rounded(gaps: list[tuple[float, int]]) -> Counter[int]:
    """How often each gap in microseconds."""
    counts: Counter[int] = Counter()
    for gap_s, count in gaps:
        counts[round(gap_s * 1e6)] += count
    return counts


@given(ACTIONS)
def test_agrees_with_a_list_for_each_request(actions: list[Action]) -> None:
    """Whoever joins, decodes for some steps, is taken out and comes back: the same gaps as often."""
    gathered, expected = list[tuple[float, int]](), list[tuple[float, int]]()
    decoding, out = list[PlainGaps](), list[PlainGaps]()
    gaps, now_s = TokenGaps(gathered), 0.0
    for action, number in actions:
        now_s += 0.5 + number
        match action:
            case "join" | "join once":
                gaps.joined(None, now_s, is_decoding=action == "join")
                if action == "join":
                    decoding.append(PlainGaps(now_s, now_s))
            case "decode":
                first_s = now_s
                now_s += 0.25 * (number - 1)
                for step in range(number):
                    for plain in decoding:
                        token_s = first_s + 0.25 * step
                        expected.append((token_s - plain.last_s, 1))
                        plain.last_s = token_s
                gaps.decoded(len(decoding), first_s, now_s, number)
            case "leave" if decoding:
                plain = decoding.pop(number % len(decoding))
                assert plain.last_s == gaps.left(plain.joined_s)
                out.append(plain)
            case "back" if out:
                plain = out.pop()
                gaps.joined(plain.last_s, now_s, is_decoding=True)
                expected.append((now_s - plain.last_s, 1))
                decoding.append(PlainGaps(now_s, now_s))
            case _:
                pass
    assert rounded(expected) == rounded(gathered)
