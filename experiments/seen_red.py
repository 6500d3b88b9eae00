"""Tests drawn by chance, each seen red: `.venv/bin/python -m experiments.seen_red --seed 20`.

Of the tests without an engine `--count` are drawn that run anything of the package. Each is run once, to
see which lines. One small change after the other is made there, in an order of chance, to a copy of the
package, until the test fails: a comparison turned round, `and` for `or`, another sign, a number one more,
a condition not.

Same seed and same commit, same table; a test that no change of `--tries` turns red is told, exit code 1.
"""

import argparse
import ast
import itertools
import os
import random
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from coverage import CoverageData

ROOT = Path(__file__).resolve().parents[1]
FAILED = 1  # pytest's exit code for this and nothing else
LIMIT_S = 60.0
SWAPPED: dict[type[ast.AST], Any] = {
    ast.Lt: ast.GtE, ast.GtE: ast.Lt, ast.Gt: ast.LtE, ast.LtE: ast.Gt, ast.Eq: ast.NotEq,
    ast.NotEq: ast.Eq, ast.Is: ast.IsNot, ast.IsNot: ast.Is, ast.In: ast.NotIn, ast.NotIn: ast.In,
    ast.And: ast.Or, ast.Or: ast.And, ast.Add: ast.Sub, ast.Sub: ast.Add, ast.Mult: ast.FloorDiv,
    ast.FloorDiv: ast.Mult, ast.Div: ast.Mult,
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Change:
    """One place of a file, in a line, and what stands there instead."""

    path: Path
    node: ast.expr
    instead: str

    def applied(self) -> bytes:
        """The file with the change; columns of a syntax tree count bytes."""
        lines = self.path.read_bytes().splitlines(keepends=True)
        at, end = self.node.lineno - 1, self.node.end_col_offset
        line = lines[at]
        lines[at] = line[: self.node.col_offset] + f"({self.instead})".encode() + line[end:]
        return b"".join(lines)


def pytest(source: Path, *words: str, **more: str) -> int:
    """Runs it on the package in `source`, with examples that do not change; its exit code."""
    environment = {**os.environ, "PYTHONPATH": str(source), "CI": "true", **more}
    flags = ("-q", "-p", "no:cacheprovider", "-p", "no:randomly")
    command = [sys.executable, "-m", "pytest", *flags, *words]
    try:
        done = subprocess.run(
            command, cwd=ROOT, env=environment, capture_output=True, check=False, timeout=LIMIT_S
        )
    except subprocess.TimeoutExpired:
        return 0  # as if the test had noticed nothing
    return done.returncode


def collected(where: list[str]) -> list[str]:
    """The tests there that need no engine and take no time, in order of their names."""
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:randomly"]
    marks = ["-m", "not slow and not vllm and not long"]
    done = subprocess.run(
        [*command, *marks, *where], cwd=ROOT, capture_output=True, text=True, check=True
    )
    return sorted(line for line in done.stdout.splitlines() if "::" in line)


def changes(test: str, source: Path) -> list[Change]:
    """All that can be changed in lines which the test runs inside of functions, imports aside."""
    where = ("--cov=chameleon_lora", "--cov-report=", "--cov-context=test")
    data_file = source / "lines"
    if pytest(source, *where, test, COVERAGE_FILE=str(data_file)):
        raise SystemExit(f"{test} fails as it is")
    data = CoverageData(str(data_file))
    data.read()
    data.set_query_contexts([r"\|run$"])
    return [
        change
        for path in sorted(map(Path, data.measured_files()))
        for change in _changes_of(path, set(data.lines(str(path)) or ()))
    ]


def _changes_of(path: Path, ran: set[int]) -> Iterator[Change]:
    for function in ast.walk(ast.parse(path.read_bytes())):
        if not isinstance(function, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        for statement in function.body:
            for node in ast.walk(statement):
                if isinstance(node, ast.expr) and node.lineno in ran:
                    instead = _instead_of(node)
                    if instead is not None and node.lineno == node.end_lineno:
                        yield Change(path, node, instead)


def _instead_of(node: ast.expr) -> str | None:
    """Another expression of the kind, if there is one."""
    other: ast.expr | None = None
    match node:
        case ast.Compare(ops=[op]) if type(op) in SWAPPED:
            other = ast.Compare(node.left, [SWAPPED[type(op)]()], node.comparators)
        case ast.BoolOp(op=op):
            other = ast.BoolOp(SWAPPED[type(op)](), node.values)
        case ast.BinOp(op=op) if type(op) in SWAPPED:
            other = ast.BinOp(node.left, SWAPPED[type(op)](), node.right)
        case ast.Constant(value=bool(value)):
            other = ast.Constant(not value)
        case ast.Constant(value=int(number)):
            other = ast.Constant(number + 1)
        case ast.UnaryOp(op=ast.Not(), operand=operand):
            other = operand
        case _:
            pass
    return None if other is None else ast.unparse(other)


def try_test(test: str, rng: random.Random, tries: int) -> tuple[str, bool] | None:
    """A line of the table, and whether the test was seen red; None if it runs nothing of the package."""
    with tempfile.TemporaryDirectory() as scratch:
        source = Path(scratch)
        shutil.copytree(ROOT / "src" / "chameleon_lora", source / "chameleon_lora")
        possible = changes(test, source)
        if not possible:
            return None
        order = rng.sample(possible, min(tries, len(possible)))
        for count, change in enumerate(order, start=1):
            sound = change.path.read_bytes()
            change.path.write_bytes(change.applied())
            code = pytest(source, test)
            change.path.write_bytes(sound)
            if code == FAILED:
                place = f"{change.path.relative_to(source)}:{change.node.lineno}"
                words = f"`{ast.unparse(change.node)}` | `{change.instead}`"
                return f"| `{test}` | `{place}` | {words} | {count} |", True
        return f"| `{test}` | stayed green | | | {len(order)} |", False


def main() -> int:
    """Draw, change, print."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("where", nargs="*", default=["tests"], help="folders and files of tests")
    parser.add_argument("--seed", type=int, default=20)
    parser.add_argument("--count", type=int, default=5, help="of tests")
    parser.add_argument("--tries", type=int, default=40, help="changes for each at most")
    args = parser.parse_args()
    rng = random.Random(args.seed)
    tests = collected(args.where)
    print("| test | changed | from | to | changes made |\n| --- | --- | --- | --- | ---: |")
    tried = (try_test(test, rng, args.tries) for test in rng.sample(tests, len(tests)))
    is_all_red = True
    for line, is_red in itertools.islice(filter(None, tried), args.count):
        print(line, flush=True)
        is_all_red = is_all_red and is_red
    return 0 if is_all_red else 1


if __name__ == "__main__":
    sys.exit(main())
