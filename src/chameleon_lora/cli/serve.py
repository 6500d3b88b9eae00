"""`chameleon serve`: vLLM's own server with Chameleon in it."""

import argparse
import asyncio
import os
import tomllib
from collections.abc import Sequence
from contextlib import suppress
from functools import partial
from pathlib import Path
from typing import Any

from chameleon_lora.adapters import AdapterFolder, inspect_adapter
from chameleon_lora.adapters.config import parse_config, read_config_bytes
from chameleon_lora.adapters.inspect import fitting_rank
from chameleon_lora.cli import say
from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.api.keys import api_keys_of
from chameleon_lora.engine_vllm.api.launch import NO_MODEL, serve
from chameleon_lora.engine_vllm.api.patience import LOOKED_AT, PatientWork
from chameleon_lora.engine_vllm.config import CONFIG_KEY
from chameleon_lora.errors import (
    AdapterError,
    AdapterTimeoutError,
    ConfigError,
    EngineGoneError,
    UnsupportedEngineError,
)
from chameleon_lora.settings import ServingSettings, parse_settings
from chameleon_lora.tenants import hash_key

PLUGIN = "chameleon"
ADMIN_KEY = "CHAMELEON_ADMIN_KEY"
SERVER_KEY, SERVER_ENV = "--api-key", "VLLM_API_KEY"  # vLLM's own
OWN = ("adapters", "chameleon_config", "overrides", "tenants", "admin_key_file")
EPILOG = (
    "MODEL is a path or a hub's name. Every flag of `vllm serve` may follow and means what it means "
    "there, also in the file of --config, where Chameleon's own may stand too. "
    "docs/settings.md lists Chameleon's own settings."
)


def add_parser(subparsers: "argparse._SubParsersAction[argparse.ArgumentParser]") -> None:
    """Register `serve`; `args.rest` is filled with the model and vLLM's flags."""
    parser = subparsers.add_parser(
        "serve",
        usage="chameleon serve MODEL --adapters DIR [--chameleon-config FILE] [--set KEY=VALUE] "
        "[--tenants FILE] [--admin-key-file FILE] [any vLLM flag]",
        epilog=EPILOG,
        allow_abbrev=False,
    )
    add_options(parser)
    parser.set_defaults(run=serve_command, takes_rest=True)


def add_options(parser: argparse.ArgumentParser, *, is_file: bool = False) -> None:
    """Chameleon's own, for the command line, or for the file of --config, where a list is one flag."""
    parser.add_argument("--adapters", type=Path, metavar="DIR", help="a folder of PEFT adapters")
    parser.add_argument("--chameleon-config", type=Path, metavar="FILE", help="settings in TOML")
    several: dict[str, Any] = (
        {"action": "extend", "nargs": "+"} if is_file else {"action": "append"}
    )
    parser.add_argument(
        "--set", default=[], metavar="KEY=VALUE", dest="overrides", **several,
        help="one setting, as admission.bypass=paper; goes before the file",
    )  # fmt: skip
    parser.add_argument("--tenants", type=Path, metavar="FILE", help="who may use which adapters")
    parser.add_argument(
        "--admin-key-file", type=Path, metavar="FILE",
        help=f"holds the key that opens control routes; or give it in {ADMIN_KEY}",
    )  # fmt: skip


def serve_command(args: argparse.Namespace) -> int:
    """Run the server until it is stopped; 1 if its engine died or this vLLM is unknown."""
    if not args.rest:
        args.parser.error(NO_MODEL)
    settings = server_settings(args)
    allow_plugin()
    try:
        serve(
            args.rest,
            partial(add_options, is_file=True),
            partial(lay_over, args=args, settings=settings),
        )
    except (EngineGoneError, UnsupportedEngineError) as error:
        say(f"chameleon serve: {error}")
        return 1
    return 0


def server_settings(args: argparse.Namespace) -> dict[str, Any]:
    """Chameleon's settings for this server, by file, `--set` and the flags of their own.

    Raises:
        ConfigError: a setting is wrong.
    """
    settings = read_settings(args.chameleon_config, args.overrides)
    parse_settings(settings)
    _add_keys(settings, args)
    serving = parse_settings(settings).serving
    _require_keys(serving, said_key=None)
    adapters: Path | None = args.adapters or (Path(serving.adapters) if serving.adapters else None)
    if adapters is None:
        return settings
    if not adapters.is_dir():
        raise ConfigError(
            f"the adapters' place {str(adapters)!r} is not a folder; create it, or give "
            "another with --adapters"
        )
    settings.setdefault("serving", {})["adapters"] = str(adapters.absolute())
    return settings


def lay_over(said: argparse.Namespace, args: argparse.Namespace, settings: dict[str, Any]) -> None:
    """Complete what the user said to vLLM, wherever it was said, by what Chameleon needs.

    Args:
        said: to vLLM, on the command line and in the file of --config, where Chameleon's own may be.
        args: Chameleon's own on the command line, which go before the file.
        settings: what these come to.

    Raises:
        ConfigError: it contradicts Chameleon.
        AdapterNotFoundError: the folder of adapters cannot be listed.
    """
    if said.scheduler_cls not in (None, SCHEDULER):
        raise ConfigError(
            f"scheduler-cls is {said.scheduler_cls!r}, but it is Chameleon's own here; use `vllm serve` to "
            "run another scheduler"
        )
    settings = _with_file(said, args, settings)
    said.scheduler_cls = SCHEDULER
    said.additional_config = _joined(said.additional_config, settings)
    serving = parse_settings(settings).serving
    if said.api_key:
        _require_keys(serving, said_key=said.api_key)
    if not serving.adapters:
        return
    if said.enable_lora is False:
        raise ConfigError("adapters cannot be served without LoRA; leave --no-enable-lora out")
    said.enable_lora = True
    if said.max_lora_rank is None:
        folder = AdapterFolder(Path(serving.adapters), serving.trusted_roots)
        said.max_lora_rank = _fitting_width(folder)


def _with_file(
    said: argparse.Namespace, args: argparse.Namespace, settings: dict[str, Any]
) -> dict[str, Any]:
    """The settings, anew if the file of --config has options of Chameleon's; vLLM is told none of them."""
    in_file = {name: vars(said).pop(name, None) for name in OWN}
    if not any(in_file.values()):
        return settings
    both = {name: getattr(args, name) or value for name, value in in_file.items()}
    both["overrides"] = [*(in_file["overrides"] or ()), *args.overrides]
    return server_settings(argparse.Namespace(**both))


def _require_keys(serving: ServingSettings, said_key: Any) -> None:
    """Nothing if vLLM's own key, said or in the environment, can be asked for beside ours."""
    server_keys = [SERVER_KEY] if said_key or os.environ.get(SERVER_ENV) else []
    api_keys_of(serving, server_keys, can_change=True)


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
    """Put the files of tenants and of the admin key, or the hash of that in the environment, into the settings."""
    given: dict[str, str | None] = {}
    if args.tenants:
        given["tenants"] = str(args.tenants.absolute())
    if args.admin_key_file:
        given |= {"admin_key_file": str(args.admin_key_file.absolute()), "admin_key_hash": None}
    elif key := os.environ.get(ADMIN_KEY):
        given |= {"admin_key_hash": hash_key(key), "admin_key_file": None}
    serving = {**settings.get("serving", {}), **given}
    if given:
        settings["serving"] = {key: value for key, value in serving.items() if value is not None}


def allow_plugin() -> None:
    """Afterwards vLLM loads Chameleon's plugin even if VLLM_PLUGINS names others only."""
    allowed = os.environ.get("VLLM_PLUGINS")
    if allowed is not None and PLUGIN not in allowed.split(","):
        os.environ["VLLM_PLUGINS"] = f"{allowed},{PLUGIN}" if allowed else PLUGIN


def _fitting_width(folder: AdapterFolder) -> int:
    """Slots wide enough for the adapters that are there."""
    return fitting_rank(asyncio.run(_largest_rank(folder)))


async def _largest_rank(folder: AdapterFolder) -> int:
    """The largest rank of adapters that are sound, as far as their disks answer. Of most no more than what they say is read."""
    patient, ranks = PatientWork(), dict[str, int]()
    async for found in patient.each(partial(_said_rank, folder), folder.entries(), LOOKED_AT):
        ranks |= found
    said = [name for name, rank in ranks.items() if rank]
    for name in sorted(said, key=ranks.__getitem__, reverse=True):
        with suppress(AdapterTimeoutError):
            info = await patient.one(lambda name: inspect_adapter(folder.root / name), name)
            if not info.problems:
                return info.rank
    return 0


def _said_rank(folder: AdapterFolder, name: str) -> int:
    path = folder.try_path(name)
    try:
        return 0 if path is None else parse_config(read_config_bytes(path)).max_rank
    except AdapterError:
        return 0


def _joined(given: Any, settings: dict[str, Any]) -> dict[str, Any]:
    """The user's own --additional-config, with Chameleon's settings in it."""
    if not isinstance(given, dict | None) or CONFIG_KEY in (given or {}):
        raise ConfigError(
            "--additional-config takes a JSON object; Chameleon's own settings go into "
            "--chameleon-config and --set"
        )
    return {**(given or {}), CONFIG_KEY: settings}
