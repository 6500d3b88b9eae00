"""Facts told to a scheduler and what it answered, one a line, to be told again to another one.

The first line of a file has the settings and limits; every further one has a method of Scheduler, what
it was called with, and its answer.
"""

import dataclasses
import inspect
from pathlib import Path
from typing import Any, get_type_hints

import msgspec

from chameleon_lora.policy.plan import StepPlan
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import EngineLimits, PolicySettings

QUESTIONS = frozenset(
    {"adapter", "adapters", "busy_blocks", "bytes_if_pinned", "device", "held_blocks"}
    | {"promotion_due_s", "request", "running", "view", "work_due_s"}
)
FACTS = frozenset(
    name for name in vars(Scheduler) if not name.startswith("_") and name not in QUESTIONS
)


@dataclasses.dataclass(frozen=True, slots=True)
class Told:
    """One call: the method's name, its arguments by name, and its answer, as plain data."""

    fact: str
    given: dict[str, Any]
    answer: Any = None


class Recorder:
    """Stands where a scheduler stands, and keeps what is told to it. Owner: whoever records."""

    def __init__(self, policy: Scheduler) -> None:
        self._policy = policy
        self._head = {"settings": _lean(policy.settings), "limits": _lean(policy.limits)}
        self.told: list[Told] = []

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._policy, name)
        if name not in FACTS:
            return found

        def tell(*args: Any, **kwargs: Any) -> Any:
            given = inspect.signature(found).bind(*args, **kwargs).arguments
            answer = found(*args, **kwargs)
            self.told.append(Told(name, {key: _lean(v) for key, v in given.items()}, _lean(answer)))
            return answer

        return tell

    def write(self, path: Path) -> None:
        """Afterwards the file has everything told so far."""
        lines = [self._head, *map(_lean, self.told)]
        path.write_bytes(b"".join(msgspec.json.encode(line) + b"\n" for line in lines))


def read(path: Path) -> tuple[Scheduler, list[Told]]:
    """A scheduler to which nothing was told yet, and what was told to the one recorded."""
    head, *lines = path.read_bytes().splitlines()
    made = msgspec.json.decode(head)
    policy = Scheduler(
        msgspec.convert(made["settings"], PolicySettings),
        msgspec.convert(made["limits"], EngineLimits),
    )
    return policy, [msgspec.json.decode(line, type=Told) for line in lines]


def tell(policy: Scheduler, told: Told) -> Any:
    """Tell the same to this scheduler; its answer, as plain data like the recorded one's."""
    method = getattr(policy, told.fact)
    hints = get_type_hints(method)
    given = {name: msgspec.convert(value, hints[name]) for name, value in told.given.items()}
    return msgspec.to_builtins(_lean(method(**given)))


def plan_of(told: Told) -> StepPlan:
    """The plan of a recorded step."""
    return msgspec.convert(told.answer, StepPlan)


def _lean(value: Any) -> Any:
    """Dataclasses as dicts of the fields that differ from their defaults."""
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: _lean(found)
            for field in dataclasses.fields(value)
            if (found := getattr(value, field.name)) != field.default
        }
    return [_lean(item) for item in value] if isinstance(value, tuple) else value
