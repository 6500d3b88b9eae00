"""The `chameleon` command: one file a sub-command, each with `add_parser` and its functions.

A command function takes the parsed arguments and returns the exit code: 0 done, 1 done and
something is wrong with what was looked at. `main` tells a ChameleonError that it raises, and ends
with 2: the arguments cannot be used.
"""

import sys


def say(line: str) -> None:
    """A line on stderr, at once: how far a command is, or what is wrong."""
    print(line, file=sys.stderr, flush=True)
