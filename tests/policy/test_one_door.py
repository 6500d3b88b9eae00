"""Nobody outside of the policy goes in by another door than `policy.scheduler.Scheduler`."""

import ast
import functools
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import EngineLimits, PolicySettings

ROOT = Path(__file__).resolve().parents[2]
OUTSIDE = sorted(
    path
    for folder in ("src", "tests", "experiments", "faults", "scripts")
    for path in (ROOT / folder).rglob("*.py")
    if not {ROOT / "src/chameleon_lora/policy", ROOT / "tests/policy"} & set(path.parents)
)
PUBLIC = frozenset({"plan", "request", "scheduler", "settings", "view"})
# They measure one inner room by itself, as its tests in tests/policy do.
MEASURE_A_ROOM = frozenset({"forecast.py", "hit_rates.py", "length_prediction.py"})
ROOM = re.compile(r"chameleon_lora\.policy\.(\w+)")
HOLDERS = frozenset({"policy", "_policy", "scheduler"})


def rooms_named(tree: ast.Module) -> Iterator[tuple[int, str]]:
    """Each room of the policy that a file imports from, and the line."""
    for node in ast.walk(tree):
        match node:
            case ast.ImportFrom(module="chameleon_lora.policy", names=names):
                yield from ((node.lineno, alias.name) for alias in names)
            case ast.ImportFrom(module=str(module)) if found := ROOM.match(module):
                yield node.lineno, found[1]
            case ast.Import(names=names):
                named = (ROOM.match(alias.name) for alias in names)
                yield from ((node.lineno, found[1]) for found in named if found)
            case _:
                pass


def back_doors(tree: ast.Module, private: frozenset[str]) -> Iterator[tuple[int, str]]:
    """Each private attribute of a scheduler that a file reads or writes, and the line."""
    for node in ast.walk(tree):
        match node:
            case ast.Attribute(
                value=ast.Name(id=holder) | ast.Attribute(attr=holder), attr=name
            ) if holder in HOLDERS and name in private:
                yield node.lineno, name
            case _:
                pass


def private_names() -> frozenset[str]:
    """What a scheduler has for itself."""
    scheduler = Scheduler(PolicySettings(), EngineLimits(1, 1, 16, 1))
    return frozenset(name for name in dir(scheduler) if re.match("_[a-z]", name))


@functools.cache
def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8"))


def test_nobody_outside_names_an_inner_room() -> None:
    """Neither the package, which a contract of the import linter holds to it, nor a test."""
    strays = [
        f"{path.relative_to(ROOT)}:{line} names policy.{room}"
        for path in OUTSIDE
        if path.name not in MEASURE_A_ROOM or path.parent != ROOT / "experiments"
        for line, room in rooms_named(parsed(path))
        if room not in PUBLIC
    ]
    assert [] == strays


def test_nobody_outside_reaches_behind_the_door() -> None:
    """What a scheduler keeps for itself is read by nobody else."""
    private = private_names()
    assert {"_residency", "_backlog", "_device"} <= private
    strays = [
        f"{path.relative_to(ROOT)}:{line} reads {name}"
        for path in OUTSIDE
        for line, name in back_doors(parsed(path), private)
    ]
    assert [] == strays


@pytest.mark.parametrize(
    "line",
    [
        "from chameleon_lora.policy.memory.entry import Entry",
        "from chameleon_lora.policy import memory",
        "import chameleon_lora.policy.memory.entry",
    ],
)
def test_every_way_to_name_a_room_is_seen(line: str) -> None:
    """The test above would find it."""
    assert [(1, "memory")] == list(rooms_named(ast.parse(line)))


@pytest.mark.parametrize("line", ["driver.policy._device.reset()", "n = self._policy._device"])
def test_every_way_behind_the_door_is_seen(line: str) -> None:
    """Likewise."""
    assert [(1, "_device")] == list(back_doors(ast.parse(line), private_names()))
