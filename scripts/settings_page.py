"""Write docs/settings.md from the settings' dataclasses.

Run by hand after a change of a setting: `.venv/bin/python scripts/settings_page.py`.
What a setting does is told once, under Attributes of its dataclass; a choice among words is told by
its Enum: by the docstring, and by the comment behind each word.
"""

import dataclasses
import inspect
import re
from collections.abc import Iterator
from enum import Enum
from pathlib import Path
from types import UnionType
from typing import Any, get_args, get_type_hints

from chameleon_lora.policy.settings import Preset, preset
from chameleon_lora.settings import Settings

PAGE = Path(__file__).resolve().parents[1] / "docs" / "settings.md"
TOML_TYPES = {
    int: "integer",
    float: "float",
    bool: "boolean",
    str: "string",
    tuple[str, ...]: "array of strings",
}
ATTRIBUTE = re.compile(r"^    (\w+): (.+(?:\n {5,}.+)*)", re.MULTILINE)
TABLE_HEAD = ("| key | type | default | what it does |", "| --- | --- | --- | --- |")
WORD = re.compile(r'^    \w+ = "([\w-]+)"(?:  # (.+))?$', re.MULTILINE)

HEAD = """\
# Settings

Made by `.venv/bin/python scripts/settings_page.py` from the source; do not edit by hand.

Every setting has a default, so none must be given. All are checked before anything starts: an unknown key, a value of
another type or out of its range ends the start with a message that names the key, the value and what is allowed.

## Giving settings

**In a file**, with `chameleon serve MODEL --adapters DIR --chameleon-config FILE`. The file is TOML, and the key
`cache.weights.size` is `size` in the table `[cache.weights]`:

```toml
preset = "paper"

[cache]
keep = "gdsf"
host_bytes = 8_000_000_000

[lanes.cluster]
max_lanes = 3
```

**On the command line**, as often as needed: `--set lanes.slo_s=2.5 --set admission.bypass=off`. It goes before the
file, and a later `--set` before an earlier one. The value is read as TOML; what is no TOML is text, so words need no
quotes. `--adapters DIR` goes before `serving.adapters`.

**With vLLM's own command**, where the settings are nested JSON under the key `chameleon`:

```
vllm serve MODEL --enable-lora --scheduler-cls chameleon_lora.engine_vllm.scheduler \\
    --additional-config '{"chameleon": {"preset": "paper", "serving": {"adapters": "/srv/adapters"}}}'
```

`chameleon serve` starts the same server; besides, it turns LoRA on and chooses `--max-lora-rank` by the adapters in the
folder, and lets streams end for 30 s (`--shutdown-timeout`), unless the flags are given, on the command line or in vLLM's
own `--config FILE.yaml`. Chameleon's own flags may stand in that file, too: `adapters: DIR`, `set: [cache.keep=lru]`. The
command line wins over that file, and both over what Chameleon would choose. An
`additional-config` of your own is kept beside Chameleon's settings; another `scheduler-cls` is refused.

A whole number does for a float. Byte counts are bytes, times are seconds.

"""
CHOOSING = """\
`preset` chooses one; without it, it is `chameleon`. The settings below change what the preset sets."""


def main() -> None:
    """The page says what the source says."""
    PAGE.write_text(page(), encoding="utf-8")


def page() -> str:
    """The whole page."""
    tables = [text for name in ("policy", "serving") for text in _tables(name)]
    return HEAD + _presets() + "\n".join(["## All settings\n", *tables])


def _tables(field: str) -> Iterator[str]:
    """The tables of `Settings.policy`, whose keys stand at the top, or of `Settings.serving`."""
    value = getattr(Settings(), field)
    yield from _table(value, "" if field == "policy" else field)


def _table(value: Any, path: str) -> Iterator[str]:
    """One dataclass as a table of its settings, then the dataclasses in it."""
    hints = get_type_hints(type(value))
    told = {name: " ".join(text.split()) for name, text in ATTRIBUTE.findall(_doc(value))}
    plain = {f.name: getattr(value, f.name) for f in dataclasses.fields(value)}
    inner = {name: plain.pop(name) for name in list(plain) if dataclasses.is_dataclass(plain[name])}
    rows = [_row(_key(path, name), hints[name], plain[name], told.get(name)) for name in plain]
    choices = [_choices(_key(path, n), _kind(hints[n])) for n in plain if _is_choice(hints[n])]
    title = f"### `{path}`\n\n{_doc(value).partition(chr(10))[0]}" if path else "### At the top"
    yield "\n".join([title, "", *TABLE_HEAD, *rows, "", *choices])
    for name, part in inner.items():
        yield from _table(part, _key(path, name))


def _row(key: str, hint: Any, default: Any, told: str | None) -> str:
    kind = _kind(hint)
    if _is_choice(hint):
        told = told or _doc(kind)
    if told is None:
        raise SystemExit(f"{key} has no line under Attributes of its dataclass; write one")
    name = "one of the words below" if _is_choice(hint) else TOML_TYPES[kind]
    return f"| `{key}` | {name} | {_shown(default)} | {_sentence(told)} |"


def _choices(key: str, kind: type[Enum]) -> str:
    """The words of a choice, each with what its comment says."""
    words = dict(WORD.findall(inspect.getsource(kind)))
    lines = [f"- `{m.value}`{f': {words[m.value]}' if words[m.value] else ''}" for m in kind]
    return "\n".join([f"`{key}` is one of", "", *lines, ""])


def _presets() -> str:
    """Each preset, and what it changes."""
    words = dict(WORD.findall(inspect.getsource(Preset)))
    default = dict(_leaves(preset(Preset.CHAMELEON), ""))
    lines = ["## Presets", "", _doc(Preset), "", CHOOSING, ""]
    lines += ["| preset | what it is | what it sets |", "| --- | --- | --- |"]
    for name in Preset:
        leaves = _leaves(preset(name), "")
        sets = [_set(key, value) for key, value in leaves if value != default[key]]
        told = _sentence(words[name.value] or "the defaults below")
        lines.append(f"| `{name.value}` | {told} | {', '.join(sets) or 'nothing'} |")
    return "\n".join([*lines, "", ""])


def _leaves(value: Any, path: str) -> Iterator[tuple[str, Any]]:
    """Each setting with its full key."""
    for field in dataclasses.fields(value):
        part, key = getattr(value, field.name), _key(path, field.name)
        if dataclasses.is_dataclass(part):
            yield from _leaves(part, key)
        else:
            yield key, part


def _doc(thing: Any) -> str:
    return inspect.cleandoc((thing if isinstance(thing, type) else type(thing)).__doc__ or "")


def _key(path: str, name: str) -> str:
    return f"{path}.{name}" if path else name


def _kind(hint: Any) -> Any:
    return get_args(hint)[0] if isinstance(hint, UnionType) else hint


def _is_choice(hint: Any) -> bool:
    return isinstance(kind := _kind(hint), type) and issubclass(kind, Enum)


def _set(key: str, value: Any) -> str:
    return f"`{key}` unset" if value is None else f"`{key} = {_toml(value)}`"


def _shown(value: Any) -> str:
    return "unset" if value is None else f"`{_toml(value)}`"


def _toml(value: Any) -> str:
    match value:
        case Enum():
            return f'"{value.value}"'
        case bool():
            return str(value).lower()
        case tuple():
            return f"[{', '.join(map(_toml, value))}]"
        case str():
            return f'"{value}"'
        case _:
            return str(value)


def _sentence(text: str) -> str:
    """With a capital letter, unless the first word has its own, and fit for a table."""
    first = text.partition(" ")[0]
    begun = text if first != first.lower() else f"{text[0].upper()}{text[1:]}"
    return begun.rstrip(".").replace("|", "\\|")


if __name__ == "__main__":
    main()
