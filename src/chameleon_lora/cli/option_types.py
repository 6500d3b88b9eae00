"""What options' words mean, and what is said of words that mean nothing."""

import argparse
import math


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


def count(text: str) -> int:
    """A whole number of 1 or more."""
    value = _number(text)
    if not 1.0 <= value < math.inf or value != int(value):
        raise argparse.ArgumentTypeError(f"is {text!r}; give a whole number of 1 or more")
    return int(value)


def share(text: str) -> float:
    """A number from 0 to 1."""
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
