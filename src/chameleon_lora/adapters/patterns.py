"""May vLLM match the keys of rank_pattern and alpha_pattern against these modules?

vLLM 0.32 runs each key as a regular expression on the name of each module, as PEFT does, inside the
engine. A hostile expression would run for hours and nothing can interrupt it. So a key is a name, or
an expression whose cost is known before it runs: no groups, nothing optional, two repeats at most.
"""

import re
from collections.abc import Iterator, Sequence

from chameleon_lora.adapters.untrusted import quoted

MAX_KEYS = 512  # as many expressions as Python's re keeps compiled
MAX_KEY_CHARS = 512
MAX_REPEATS = 2
MAX_STEPS = 100_000_000  # of matching, in all: about a second

_LITERAL = re.compile(r"[\w.\-]+", re.ASCII)
_SIGN = r"(?:[\w.\-]|\\[.\-dw]|\[[\w\-]+\])"
_CHEAP = re.compile(rf"\^?(?:{_SIGN}[*+]?)+\$?", re.ASCII)
_REPEAT = re.compile(r"[*+]")


def is_literal(key: str) -> bool:
    """Is it a module's name, or the end of one?"""
    return _LITERAL.fullmatch(key) is not None


def pattern_problems(field: str, keys: Sequence[str], modules: Sequence[str]) -> Iterator[str]:
    """Why the keys of that field are not tried on these modules; at most one line. O(modules)."""
    way_out = f"way out: write the modules' own names into {field}"
    if len(keys) > MAX_KEYS:
        yield f"{field} has {len(keys)} keys, the limit is {MAX_KEYS}; {way_out}, or their ends"
        return
    unclear = [key for key in keys if not _is_cheap(key)]
    if unclear:
        yield (
            f"{field} has the key {quoted(unclear[0])}, which is not run: it may take for ever. "
            f"Allowed are names, and expressions without groups, of at most {MAX_REPEATS} repeats "
            f"and {MAX_KEY_CHARS} characters; {way_out}"
        )
        return
    steps = _steps(keys, modules)
    if steps > MAX_STEPS:
        yield (
            f"{field} may take {steps} steps to match its {len(keys)} keys against "
            f"{len(modules)} modules, the limit is {MAX_STEPS}; {way_out}"
        )


def _is_cheap(key: str) -> bool:
    if len(key) > MAX_KEY_CHARS:
        return False
    is_plain = is_literal(key) or _CHEAP.fullmatch(key) is not None
    return is_plain and len(_REPEAT.findall(key)) <= MAX_REPEATS and _compiles(key)


def _compiles(key: str) -> bool:
    try:
        re.compile(key)
    except re.error:
        return False
    return True


def _steps(keys: Sequence[str], modules: Sequence[str]) -> int:
    """At most: each key starts behind each dot, and each repeat may end at each sign."""
    with_repeats = [sum(len(_REPEAT.findall(key)) == n for key in keys) for n in range(3)]
    total = 0
    for module in modules:
        starts, signs = module.count(".") + 2, len(module) + 1
        total += starts * sum(count * signs**n for n, count in enumerate(with_repeats))
    return total
