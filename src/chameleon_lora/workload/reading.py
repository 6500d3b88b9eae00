"""One request as a trace's file gives it, and what is wrong with a line that gives none."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

from chameleon_lora.errors import ConfigError

MAX_TOKENS = 1_000_000_000
MAX_TIME = 1e18
_SHOWN_CHARACTERS = 80


class Reading(NamedTuple):
    """One request, its time not yet related to the first one's.

    Attributes:
        time_us: since any fixed moment; an int where the file is exact.
        adapter: None for the base model, or where the file names none.
    """

    time_us: float
    adapter: str | None
    input_tokens: int
    output_tokens: int


class MalformedError(ValueError):
    """A line holds no request; the message says what is there and what was expected."""

    def __init__(self, found: object, expected: str) -> None:
        super().__init__(f"{shown(found)}; expected {expected}")


def shown(found: object) -> str:
    """`found` as an error shows it: in one short line, without control characters."""
    text = ascii(found)
    return text if len(text) <= _SHOWN_CHARACTERS else f"{text[:_SHOWN_CHARACTERS]}..."


def in_line(path: Path, number: int, error: MalformedError) -> ConfigError:
    """The error that names the file and the line, from 1."""
    return ConfigError(f"{str(path)!r}, line {number}: {error}")


def parsed_object(text: str, expected: str) -> Mapping[str, Any]:
    """`text` as a JSON object.

    Raises:
        MalformedError: it is something else; `expected` says what should be there.
    """
    try:
        fields = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise MalformedError(text.strip(), expected) from error
    if not isinstance(fields, dict):
        raise MalformedError(fields, expected)
    return fields


def tokens(value: object, name: str) -> int:
    """`value` as a number of tokens; 31.0 counts as 31, and 0 is allowed.

    Raises:
        MalformedError: it is no whole number within 0..10^9.
    """
    number = value
    if isinstance(value, float) and value.is_integer():
        number = int(value)
    if isinstance(number, bool) or not isinstance(number, int) or not 0 <= number <= MAX_TOKENS:
        raise MalformedError(value, f"in {name} a whole number of tokens from 0 to {MAX_TOKENS:,}")
    return number


def finite(value: object, name: str) -> float:
    """`value` as a time, an int unchanged.

    Raises:
        MalformedError: it is no number, not finite, or above 10^18 in size.
    """
    if (
        isinstance(value, bool)
        or not isinstance(value, int | float)
        or not abs(value) <= MAX_TIME  # also false for NaN
    ):
        raise MalformedError(value, f"in {name} a number from -{MAX_TIME:g} to {MAX_TIME:g}")
    return value
