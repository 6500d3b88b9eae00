"""What options' words mean, and what is said of words that mean nothing."""

import argparse
import math
from collections.abc import Callable


def positive(text: str) -> float:
    """A finite number above 0."""
    value = _number(text)
    if not 0.0 < value < math.inf:
        raise argparse.ArgumentTypeError(f"is {text!r}; give a number above 0")
    return value


def not_negative(text: str) -> float:
    """A finite number of 0 or more."""
    value = _number(text)
    if not 0.0 <= value < math.inf:
        raise argparse.ArgumentTypeError(f"is {text!r}; give a number of 0 or more")
    return value


def whole(least: int, most: int | None = None) -> Callable[[str], int]:
    """Takes whole numbers in these limits; 1e3 is one."""
    limits = f"of {least} or more" if most is None else f"from {least} to {most}"

    def parsed(text: str) -> int:
        try:
            value: float = int(text)
        except ValueError:
            value = _number(text)
        if not least <= value <= (math.inf if most is None else most) or value % 1 != 0:
            raise argparse.ArgumentTypeError(f"is {text!r}; give a whole number {limits}")
        return int(value)

    return parsed


count = whole(1)


def share(text: str) -> float:
    """Parser of an option from 0 to 1, ends included."""
    value = _number(text)
    if not 0.0 <= value <= 1.0:
        raise argparse.ArgumentTypeError(f"is {text!r}; give a number from 0 to 1")
    return value


def _number(text: str) -> float:
    """NaN, which no range holds, for what is none."""
    try:
        return float(text)
    except ValueError:
        return math.nan
