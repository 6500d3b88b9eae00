"""Figures as people read them: milliseconds, percent, ratios. A dash where there is none."""

from collections.abc import Sequence

MISSING = "–"
MILLISECONDS = 1000.0


def ms(value_s: float | None) -> str:
    """Seconds as milliseconds, three digits or more, without the unit."""
    return MISSING if value_s is None else plain(value_s * MILLISECONDS)


def percent(share: float | None) -> str:
    """A share of 1 in percent."""
    return MISSING if share is None else f"{100.0 * share:.1f} %"


def plain(value: float | None) -> str:
    """Three digits or more, without exponent."""
    if value is None:
        return MISSING
    decimals = 0 if abs(value) >= 100.0 else 1 if abs(value) >= 10.0 else 2
    return f"{value:.{decimals}f}"


def interval(ratio: float | None, low: float | None, high: float | None) -> str:
    """A ratio with its interval, where it has one."""
    if ratio is None:
        return MISSING
    return f"{ratio:.2f}" if low is None or high is None else f"{ratio:.2f} [{low:.2f}, {high:.2f}]"


def listed(words: Sequence[str]) -> str:
    """a, b and c."""
    return " and ".join(filter(None, (", ".join(words[:-1]), *words[-1:])))


def counted(count: int, noun: str) -> str:
    """1 run, 2 runs."""
    return f"{count} {noun}" if count == 1 else f"{count} {noun}s"
