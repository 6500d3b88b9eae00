"""Which key of rank_pattern or alpha_pattern is meant for a module?

PEFT takes each key as a regular expression on the end of the module's name; the first that matches
counts. vLLM 0.32 runs them so in the engine, by backtracking: a hostile one would run for hours, and
nothing can interrupt it. Here RE2 matches, which takes at most a step for each instruction of the
compiled expression at each sign of the name, whatever they are; the sum of these is limited. vLLM is
handed the outcome: names, in expressions that never have two ways to go on.
"""

import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import re2

from chameleon_lora.adapters.untrusted import quoted

MAX_EXPRESSIONS = 512
MAX_EXPRESSION_CHARS = 512
MAX_STEPS = 200_000_000  # in all: a second as a rule, four for the worst of expressions
MAX_VALUES = 256  # different ones: vLLM tries an expression for each, on each module

_LITERAL = re.compile(r"(?:[\w.\-]|\\[.\-])+\$?", re.ASCII)
_CALL_STEPS = 1000  # what an attempt costs besides
_OPTIONS = re2.Options()
_OPTIONS.max_mem = 1 << 17  # of one compiled expression, in bytes
_OPTIONS.never_capture = True
_OPTIONS.log_errors = False
_END = "."  # in a tree of names: one ends here

_Tree = dict[str, Any]  # part of a name -> the tree of what follows it


def is_literal(key: str) -> bool:
    """Is it a module's name, or the end of one? Its dots are dots then, escaped or not."""
    return _LITERAL.fullmatch(key) is not None


def key_finder(keys: Sequence[str]) -> Callable[[str], str | None]:
    """A function: module -> the first key that means it, or None. For keys without problems."""
    names: dict[str, int] = {}
    expressions: list[tuple[int, Any]] = []
    for place, key in enumerate(keys):
        if is_literal(key):
            names.setdefault(key.replace("\\", "").removesuffix("$"), place)
        else:
            expressions.append((place, _compiled(key)))

    def find(module: str) -> str | None:
        parts = module.split(".")
        endings = (".".join(parts[start:]) for start in range(len(parts)))
        first = min((names[e] for e in endings if e in names), default=len(keys))
        for place, expression in expressions:
            if place > first:
                break
            if expression.fullmatch(module):
                return keys[place]
        return keys[first] if first < len(keys) else None

    return find


def exact_pattern(pattern: Mapping[str, float], modules: Sequence[str]) -> dict[str, float]:
    """A pattern that gives each of these modules the same value; for keys without problems.

    Its keys are names' common beginnings and what may follow, so one attempt follows one path.
    """
    trees = _trees(pattern, modules)
    return {"^" + _expression(tree).removeprefix(r"\."): value for value, tree in trees.items()}


def pattern_problems(
    field: str, pattern: Mapping[str, float], modules: Sequence[str]
) -> Iterator[str]:
    """Why that field's keys are not tried on these modules; at most one line."""
    way_out = f"way out: write the modules' own names into {field}"
    expressions = [key for key in pattern if not is_literal(key)]
    unclear = [key for key in expressions if not _is_bounded(key)]
    if len(expressions) > MAX_EXPRESSIONS:
        yield (
            f"{field} has {len(expressions)} expressions, the limit is {MAX_EXPRESSIONS}; {way_out}"
        )
    elif unclear:
        yield (
            f"{field} has the key {quoted(unclear[0])}, which is not run: it may take for ever. "
            "Allowed are names, and expressions without look-around and back-references, of at most "
            f"{MAX_EXPRESSION_CHARS} characters and not too large when repeats are written out; {way_out}"
        )
    elif len(set(pattern.values())) > MAX_VALUES:
        yield (
            f"{field} has {len(set(pattern.values()))} different values, the limit is "
            f"{MAX_VALUES}; way out: save the adapter again"
        )
    elif (steps := _steps(expressions, modules)) > MAX_STEPS or (
        steps := _exact_steps(pattern, modules)
    ) > MAX_STEPS:
        yield (
            f"{field} may take {steps} steps to match its {len(pattern)} keys against "
            f"{len(modules)} modules, the limit is {MAX_STEPS}; {way_out}"
        )


def _compiled(key: str) -> Any:
    """The expression on a whole name. Raises re2.error or UnicodeEncodeError."""
    re2.compile(key, _OPTIONS)  # on its own, too: what it opens, it closes
    return re2.compile(rf"(?:.*\.)?(?:{key})", _OPTIONS)


def _is_bounded(key: str) -> bool:
    if not key or len(key) > MAX_EXPRESSION_CHARS or "{," in key:  # the last is plain text to RE2
        return False
    try:
        return _compiled(key) is not None
    except (re2.error, UnicodeEncodeError):
        return False


def _steps(expressions: Sequence[str], modules: Sequence[str]) -> int:
    """At most: each instruction at each sign of each name."""
    signs = sum(len(module.encode()) + 1 for module in modules)
    instructions: int = sum(_compiled(key).programsize for key in expressions)
    return signs * instructions + _CALL_STEPS * len(modules) * len(expressions)


def _exact_steps(pattern: Mapping[str, float], modules: Sequence[str]) -> int:
    """At most: each key of `exact_pattern` on each module, the widest branch at each part."""
    return len(modules) * sum(map(_width, _trees(pattern, modules).values()))


def _trees(pattern: Mapping[str, float], modules: Sequence[str]) -> dict[float, _Tree]:
    """Value -> the names of the modules that have it."""
    find = key_finder(tuple(pattern))
    trees: defaultdict[float, _Tree] = defaultdict(dict)
    for module in modules:
        key = find(module)
        if key is not None:
            node = trees[pattern[key]]
            for part in module.split("."):
                node = node.setdefault(part, {})
            node[_END] = {}
    return trees


def _expression(tree: _Tree) -> str:
    """What may follow the part whose tree this is."""
    branches = [re.escape(part) + _expression(rest) for part, rest in tree.items() if part != _END]
    if not branches:
        return ""
    following = rf"\.(?:{'|'.join(branches)})"
    return f"(?:{following})?" if _END in tree else following


def _width(tree: _Tree) -> int:
    width, level = 0, [tree]
    while level:
        width += max(map(len, level))
        level = [below for node in level for below in node.values()]
    return width
