"""`python -m faults`: what is refused before anything starts."""

import pytest

from faults.__main__ import main


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--duration", "5"], "--duration is 5 s, the least is 60"),
        (["--warm-up", "-1"], "--warm-up is -1 s, the least is 0"),
        (["--only", "flood"], "no fault is named 'flood'"),
        (["--only", "killed"], "--only killed leaves no fault that a server survives"),
    ],
)
def test_what_cannot_be_done_is_told(
    words: list[str], expected: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Status 2 and the reason."""
    assert 2 == main(words)
    assert expected in capsys.readouterr().err
