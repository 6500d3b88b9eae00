"""The highest load at which something holds."""

from collections.abc import Callable

STEP = 1.5
MOST_PER_S, LEAST_PER_S = 1e6, 1e-3


def highest_rate(
    holds: Callable[[float], bool], start_per_s: float, tolerance: float = 0.03
) -> float:
    """The highest rate found at which `holds`, in requests/s; 0 if there is none.

    A bracket around `start_per_s` is widened by steps of 1.5 and then halved until it is within
    `tolerance` of the load. `holds` should be true below some rate and false above; it is asked 8
    to 12 times, a rate more than once.
    """
    low = high = start_per_s
    while high < MOST_PER_S and holds(high):
        low, high = high, high * STEP
    while low > LEAST_PER_S and not holds(low):
        low, high = low / STEP, low
    return narrowed(holds, low, high, tolerance) if holds(low) else 0.0


def narrowed(
    holds: Callable[[float], bool], low_per_s: float, high_per_s: float, tolerance: float
) -> float:
    """The lower end of a bracket, which holds, once the higher, which does not, is close to it."""
    while high_per_s - low_per_s > tolerance * high_per_s:
        middle = (low_per_s + high_per_s) / 2
        if holds(middle):
            low_per_s = middle
        else:
            high_per_s = middle
    return low_per_s
