"""What is compared live: servers, each a command line, and in what they differ."""

import shlex
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.settings import Preset
from chameleon_lora.servers.launching import (
    PORT,
    ServedModel,
    chameleon_command,
    on_port,
    stock_command,
)

STOCK = "stock"
POLICY, COMMAND = "policy", "command"
_IN_SLOTS = ("--set", "serving.lora_backend=slots")

FLAGS: Mapping[str, tuple[str, ...]] = {
    "chameleon": (),
    "paper": ("--set", f"preset={Preset.PAPER.value}"),
    "vllm-policy": ("--set", f"preset={Preset.VLLM.value}", *_IN_SLOTS),
    "slora": ("--set", f"preset={Preset.SLORA.value}"),
    "sjf": ("--set", f"preset={Preset.SJF.value}"),
    "cache-only": ("--set", f"preset={Preset.CACHE_ONLY.value}"),
    "scheduler-only": ("--set", f"preset={Preset.SCHEDULER_ONLY.value}", *_IN_SLOTS),
}
"""Policies that Chameleon's server runs, with the flags that choose them. Stock's own rules under
Chameleon's server are `vllm-policy`. Those that are about scheduling alone leave adapters in vLLM's
slots; the others use them from where they lie, where the engine can."""


@dataclass(frozen=True, slots=True)
class Arm:
    """One server of a comparison.

    Attributes:
        label: its name in tables and folders.
        command: the program and its arguments; `{port}` stands for the port.
        settings: what it is made of, by name; two arms differ in those that are unlike.
    """

    label: str
    command: tuple[str, ...]
    settings: Mapping[str, str] = field(default_factory=dict)

    def on(self, port: int) -> list[str]:
        """The command's words, with this port for `{port}`."""
        return on_port(self.command, port)


def arm_of(text: str, served: ServedModel) -> Arm:
    """The arm that `text` names.

    It is a built-in arm (`stock`, or one of FLAGS), `LABEL=BUILT-IN FLAG...` for one with more flags,
    or `LABEL=COMMAND`, a command line with {port}, and {model} and {adapters} where it likes.

    Raises:
        ConfigError: it is none of these, or a command has no {port}.
    """
    label, separator, rest = text.partition("=")
    if not separator:
        return _built_in(text, text, (), served)
    words = _words(text, rest)
    if not label or "/" in label or not words:
        raise ConfigError(
            f"--arm {text!r} is not LABEL=COMMAND or LABEL=BUILT-IN FLAG..., with a label fit for a "
            "folder's name"
        )
    if words[0] == STOCK or words[0] in FLAGS:
        return _built_in(label, words[0], tuple(words[1:]), served)
    if PORT not in rest:
        raise ConfigError(
            f"--arm {label}: the command has no {PORT}, where the port to listen on is put, and "
            f"{words[0]!r} is no built-in arm ({', '.join((STOCK, *FLAGS))})"
        )
    places = {"{model}": served.model, "{adapters}": str(served.adapters_dir)}
    for place, value in places.items():
        words = [word.replace(place, value) for word in words]
    return Arm(label, tuple(words), {COMMAND: shlex.join(words)})


def differences(base: Arm, other: Arm) -> tuple[str, ...]:
    """Each setting in which `other` is unlike `base`, as people read it; by name."""
    names = sorted({*base.settings, *other.settings})
    return tuple(
        f"{name}: {other.settings.get(name, 'not given')} instead of "
        f"{base.settings.get(name, 'not given')}"
        for name in names
        if base.settings.get(name) != other.settings.get(name)
    )


def check_one_difference(base: Arm, others: Sequence[Arm]) -> None:
    """A comparison changes one setting, or nobody knows what its figures are about.

    Raises:
        ConfigError: an arm differs from the base in more settings than one, or in none.
    """
    for arm in others:
        unlike = differences(base, arm)
        if len(unlike) != 1:
            raise ConfigError(
                f"arm {arm.label!r} differs from {base.label!r} in {len(unlike)} settings"
                f"{': ' if unlike else ''}{'; '.join(unlike)}. A comparison changes one; give a "
                "base that differs in one, or --allow-differences"
            )


def _built_in(label: str, name: str, extra: tuple[str, ...], served: ServedModel) -> Arm:
    settings = {POLICY: name, **_flag_values(extra)}
    if name == STOCK:
        return Arm(label, stock_command(served, extra), settings)
    if name not in FLAGS:
        raise ConfigError(
            f"no built-in arm {name!r}; there are {', '.join((STOCK, *FLAGS))}, or give "
            "LABEL=COMMAND"
        )
    return Arm(label, chameleon_command(served, (*FLAGS[name], *extra)), settings)


def _flag_values(words: Sequence[str]) -> dict[str, str]:
    """The values of flags by their names; `--set a.b=c` is the setting a.b."""
    values: dict[str, str] = {}
    name = ""
    for word in words:
        if word.startswith("--"):
            name, _, value = word.partition("=")
            values[name] = value
        elif name == "--set":
            key, _, value = word.partition("=")
            values[key] = value
        else:
            values[name] = f"{values.get(name, '')} {word}".strip()
    values.pop("--set", None)
    return values


def _words(text: str, rest: str) -> list[str]:
    try:
        return shlex.split(rest)
    except ValueError as error:
        raise ConfigError(f"--arm {text!r} cannot be read as a command line: {error}") from error
