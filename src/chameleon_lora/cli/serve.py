"""`chameleon serve`: vLLM's own server with Chameleon in it."""

import argparse
import json
import os
import tomllib
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from chameleon_lora.adapters import AdapterFolder, inspect_adapter
from chameleon_lora.cli import say
from chameleon_lora.cli.option_types import fitting_rank
from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.api.keys import api_keys_of
from chameleon_lora.engine_vllm.api.launch import serve
from chameleon_lora.errors import AdapterError, ConfigError, EngineGoneError, UnsupportedEngineError
from chameleon_lora.settings import parse_settings
from chameleon_lora.tenants import hash_key

PLUGIN = "chameleon"
ADMIN_KEY = "CHAMELEON_ADMIN_KEY"
SERVER_KEY, SERVER_ENV = "--api-key", "VLLM_API_KEY"  # vLLM's own
EPILOG = (
    "Every flag of `vllm serve` may follow and means what it means there. "
    "docs/settings.md lists Chameleon's own settings."
)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `serve`; `args.rest` is filled with vLLM's flags."""
    parser = subparsers.add_parser(
        "serve",
        usage="chameleon serve MODEL --adapters DIR [--chameleon-config FILE] [--set KEY=VALUE] "
        "[--tenants FILE] [--admin-key-file FILE] [any vLLM flag]",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    parser.add_argument("model", metavar="MODEL", help="as for vllm serve: a path or a hub's name")
    parser.add_argument("--adapters", type=Path, metavar="DIR", help="a folder of PEFT adapters")
    parser.add_argument("--chameleon-config", type=Path, metavar="FILE", help="settings in TOML")
    parser.add_argument(
        "--set", action="append", default=[], metavar="KEY=VALUE", dest="overrides",
        help="one setting, as admission.bypass=paper; goes before the file",
    )  # fmt: skip
    parser.add_argument("--tenants", type=Path, metavar="FILE", help="who may use which adapters")
    parser.add_argument(
        "--admin-key-file", type=Path, metavar="FILE",
        help=f"holds the key that opens control routes; or give it in {ADMIN_KEY}",
    )  # fmt: skip
    parser.set_defaults(run=serve_command, takes_rest=True)


def serve_command(args: argparse.Namespace) -> int:
    """Run the server until it is stopped; 1 if its engine died or this vLLM is unknown."""
    arguments = vllm_arguments(args)
    allow_plugin()
    try:
        serve(arguments)
    except (EngineGoneError, UnsupportedEngineError) as error:
        say(f"chameleon serve: {error}")
        return 1
    return 0


def vllm_arguments(args: argparse.Namespace) -> list[str]:
    """The arguments of `vllm serve` that do what was asked of `chameleon serve`.

    Raises:
        ConfigError: a setting is wrong, or a flag contradicts Chameleon.
        AdapterNotFoundError: the folder of adapters cannot be listed.
    """
    settings = read_settings(args.chameleon_config, args.overrides)
    parse_settings(settings)
    _add_keys(settings, args)
    serving = parse_settings(settings).serving
    named = serving.adapters
    adapters: Path | None = args.adapters or (Path(named) if named else None)
    rest: list[str] = list(args.rest)
    if _has(rest, "--scheduler-cls"):
        raise ConfigError(
            "--scheduler-cls is Chameleon's own here; use `vllm serve` to run another scheduler"
        )
    server_keys = [SERVER_KEY] if _has(rest, SERVER_KEY) or os.environ.get(SERVER_ENV) else []
    api_keys_of(serving, server_keys, can_change=True)
    lora: list[str] = []
    if adapters is not None:
        if not adapters.is_dir():
            raise ConfigError(
                f"the adapters' place {str(adapters)!r} is not a folder; create it, or give "
                "another with --adapters"
            )
        settings.setdefault("serving", {})["adapters"] = str(adapters.absolute())
        lora = _lora_flags(AdapterFolder(adapters, serving.trusted_roots), rest)
    extra, rest = _take_additional_config(rest)
    config = json.dumps({**extra, "chameleon": settings})
    return [
        *(args.model, "--scheduler-cls", SCHEDULER),
        *("--additional-config", config),
        *lora,
        *rest,
    ]


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


def _add_keys(settings: dict[str, Any], args: argparse.Namespace) -> None:
    """Put the tenants' file and the hash of the admin key into the settings, if they are given."""
    serving = settings.setdefault("serving", {}) if args.tenants or _admin_key(args) else {}
    if args.tenants:
        serving["tenants"] = str(args.tenants.absolute())
    if key := _admin_key(args):
        serving["admin_key_hash"] = hash_key(key)


def _admin_key(args: argparse.Namespace) -> str | None:
    path: Path | None = args.admin_key_file
    if path is None:
        return os.environ.get(ADMIN_KEY)
    try:
        return path.read_text().strip()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"admin key file {path} cannot be read: {error}") from error


def allow_plugin() -> None:
    """Afterwards vLLM loads Chameleon's plugin even if VLLM_PLUGINS names others only."""
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN not in allowed.split(","):
        os.environ["VLLM_PLUGINS"] = f"{allowed},{PLUGIN}" if allowed else PLUGIN


def _lora_flags(folder: AdapterFolder, rest: Sequence[str]) -> list[str]:
    """LoRA on, and slots wide enough for the adapters that are there, unless the user says so."""
    flags = [] if _has(rest, "--enable-lora") else ["--enable-lora"]
    if not _has(rest, "--max-lora-rank"):
        largest = max((_rank(folder.root / name) for name in folder.names()), default=0)
        flags += ["--max-lora-rank", str(fitting_rank(largest))]
    return flags


def _rank(path: Path) -> int:
    try:
        info = inspect_adapter(path)
    except AdapterError:
        return 0
    return 0 if info.problems else info.rank


def _has(arguments: Sequence[str], flag: str) -> bool:
    variants = (flag, flag.replace("-", "_").replace("__", "--", 1))
    return any(argument.partition("=")[0] in variants for argument in arguments)


def _take_additional_config(rest: list[str]) -> tuple[dict[str, Any], list[str]]:
    """The user's own --additional-config, and the arguments without it."""
    kept: list[str] = []
    given: dict[str, Any] = {}
    arguments = iter(rest)
    for argument in arguments:
        flag, separator, text = argument.partition("=")
        if flag.startswith(("--additional-config.", "--additional_config.")):
            raise ConfigError(
                f"{flag} would replace Chameleon's settings in --additional-config; give "
                "--additional-config one JSON object instead"
            )
        if flag not in ("--additional-config", "--additional_config"):
            kept.append(argument)
            continue
        text = text if separator else next(arguments, "")
        try:
            given = json.loads(text)
        except ValueError as error:
            raise ConfigError(f"--additional-config {text!r} is not JSON: {error}") from error
        if not isinstance(given, dict) or "chameleon" in given:
            raise ConfigError(
                "--additional-config takes a JSON object; Chameleon's own settings go into "
                "--chameleon-config and --set"
            )
    return given, kept
