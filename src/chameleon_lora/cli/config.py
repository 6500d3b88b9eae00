"""Chameleon's settings from a TOML file and from `--set`, checked before anything starts."""

import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chameleon_lora.errors import ConfigError


def read_settings(path: Path | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The nested mapping of a settings file with `a.b=c` overrides laid over it.

    Raises:
        ConfigError: the file cannot be read, is no TOML, or an override is not `key=value`.
    """
    settings = {} if path is None else _read_toml(path)
    for override in overrides:
        key, separator, text = override.partition("=")
        if not separator or not key.strip():
            raise ConfigError(f"--set {override!r} is not of the form key=value, as cache.keep=lru")
        _put(settings, key.strip().split("."), _value(text.strip()), override)
    return settings


def _read_toml(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text())
    except OSError as error:
        raise ConfigError(f"settings file {path} cannot be read: {error.strerror}") from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError(f"settings file {path} is not TOML: {error}") from error


def _value(text: str) -> Any:
    """A TOML value, or the text itself where it is none (so that words need no quotes)."""
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def _put(settings: dict[str, Any], path: list[str], value: Any, override: str) -> None:
    for name in path[:-1]:
        settings = settings.setdefault(name, {})
        if not isinstance(settings, dict):
            raise ConfigError(f"--set {override!r}: {name!r} is a value, not a table of settings")
    settings[path[-1]] = value
