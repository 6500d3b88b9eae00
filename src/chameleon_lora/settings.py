"""Every setting a user can give, checked where it enters.

Settings come as nested mappings (TOML, `--set a.b=c`, vLLM's `--additional-config`) and leave as
frozen dataclasses. `preset` chooses the values that the others change.
"""

import dataclasses
import re
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum, EnumType
from pathlib import Path
from typing import Any, TypeVar, get_args, get_origin, get_type_hints

import msgspec

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.settings import PolicySettings, Preset, preset

T = TypeVar("T")
KEY_HASH = re.compile(r"sha256:[0-9a-f]{64}")
GONE = {
    "serving.slot_parts": "no two adapters share a slot; where serving.lora_backend is auto, an engine on a CPU has "
    "no slots at all, and uses each adapter at its own rank. Leave it out"
}
"""Settings of former versions, and what is in their place."""
POLICY = tuple(f.name for f in dataclasses.fields(PolicySettings))


class LoraBackend(Enum):
    """From where batches use adapters."""

    AUTO = "auto"  # paged where the engine can, else slots
    PAGED = "paged"  # from where they lie in host memory, each at its own rank (CPU)
    SLOTS = "slots"  # from vLLM's slots, padded to --max-lora-rank


@dataclass(frozen=True, slots=True)
class ServingSettings:
    """How the driver serves.

    Attributes:
        adapters: folder whose sub-folders are served as adapters.
        trusted_roots: folders besides, as absolute paths, that links in that folder may lead into: a hub's
            cache, say, or where runs are saved. Whoever may write there is an author of adapters.
        scan_s: time between two looks at that folder; on a local disk each is at what changed only.
        scan_all_s: time between two looks at all of its adapters where the system tells which changed; 0 for
            no such telling, so each look is at all.
        trusts_hints: take a request's `vllm_xargs: {"output_tokens": n}` as its output length.
        serves_partial: serve an adapter although some of its weights find no layer of the model, with a
            warning in the log, as vLLM does without one; else it is refused, with their names.
        converts_bin: write weights that are pickled alone, adapter_model.bin, as safetensors into the
            adapter's folder when it is offered or loaded: read by torch with weights_only in a process of
            its own. Some seconds each, in which no other new folder is looked at.
        lora_backend: from where batches use adapters: `slots` is vLLM's way; `paged` is without slots, from where
            adapters lie in host memory, on a CPU only so far, where --max-loras bounds nothing; `auto` is
            that where the engine can, and slots elsewhere. Chameleon's first line in the log says which, and why.
        disk_cache_bytes: of packed copies of adapters on disk, for all workers of an engine on a host, so that
            an adapter's later loads are one read; never more than a tenth of what is free there. They
            lie in a file without a name, which goes with the worker. 0 for none.
        disk_cache_dir: folder for that file; a fast local disk is best. Unset, the system's own for
            temporary files, unless that is in memory: then nothing is kept.
        debug_checks: compare the bytes of each adapter taken from the KV cache with its host copy,
            and count all KV blocks whenever no request is left; an engine that finds a difference
            ends. Slow.
        admin_key_hash: the admin key's hash, as `chameleon tenants hash` prints it; with one, loading,
            unloading and pinning adapters and Chameleon's own pages need that key.
        admin_key_file: file that holds the admin key itself, in place of the hash; looked at again every
            scan_s, so a new key needs no restart.
        tenants: file of tenants in TOML (docs/tenants.md); with one, whoever asks needs a tenant's key
            or the admin's.
        max_body_bytes: of a request's body; above it, 413. Unset: 256 MiB without tenants; with them 64
            bytes for each token of the model's context, but at least 2 MiB, or 32 MiB if it takes images,
            sound or video.
        send_timeout_s: time in which a client takes nothing of an answer that fills its connection, after
            which the connection is ended and the request aborted; 0 for no end.
    """

    adapters: str | None = None
    trusted_roots: tuple[str, ...] = ()
    scan_s: float = 1.0
    scan_all_s: float = 60.0
    trusts_hints: bool = False
    serves_partial: bool = False
    converts_bin: bool = False
    lora_backend: LoraBackend = LoraBackend.AUTO
    disk_cache_bytes: int = 1 << 30
    disk_cache_dir: str | None = None
    debug_checks: bool = False
    admin_key_hash: str | None = None
    admin_key_file: str | None = None
    tenants: str | None = None
    max_body_bytes: int | None = None
    send_timeout_s: float = 300.0

    def __post_init__(self) -> None:
        if self.scan_s < 0.1:
            raise ConfigError(f"serving.scan_s is {self.scan_s}; use 0.1 seconds or more")
        if self.scan_all_s < 0:
            raise ConfigError(f"serving.scan_all_s is {self.scan_all_s}; use 0 (no events) or more")
        for root in self.trusted_roots:
            if not Path(root).is_absolute():
                raise ConfigError(f"serving.trusted_roots holds {root!r}; use absolute paths")
        if self.disk_cache_bytes < 0:
            raise ConfigError(
                f"serving.disk_cache_bytes is {self.disk_cache_bytes}; use 0 (none) or more"
            )
        if self.max_body_bytes is not None and self.max_body_bytes < 1024:
            raise ConfigError(f"serving.max_body_bytes is {self.max_body_bytes}; use 1024 or more")
        if self.send_timeout_s < 0:
            raise ConfigError(
                f"serving.send_timeout_s is {self.send_timeout_s}; use 0 (no end) or more"
            )
        self._require_one_key()

    def _require_one_key(self) -> None:
        if self.admin_key_hash and not KEY_HASH.fullmatch(self.admin_key_hash):
            raise ConfigError(
                f"serving.admin_key_hash has {len(self.admin_key_hash)} characters and is no sha256: "
                "with 64 hex digits; `chameleon tenants hash` makes it from a key"
            )
        if self.admin_key_hash and self.admin_key_file:
            raise ConfigError(
                "serving.admin_key_hash and serving.admin_key_file are given; use one"
            )

    @property
    def asks_for_keys(self) -> bool:
        """Whether there is anything that needs a key of the admin's or of a tenant's."""
        return bool(self.tenants or self.admin_key_hash or self.admin_key_file)


@dataclass(frozen=True, slots=True)
class Settings:
    """All settings of one server; `preset` is where those of the policy began."""

    policy: PolicySettings = field(default_factory=PolicySettings)
    serving: ServingSettings = field(default_factory=ServingSettings)
    preset: Preset = Preset.CHAMELEON


def parse_settings(given: Mapping[str, Any]) -> Settings:
    """The settings a mapping stands for.

    Raises:
        ConfigError: naming the key, the value and what is allowed.
    """
    known = ("preset", "serving", *POLICY)
    for key in given:
        if key not in known:
            raise ConfigError(f"setting {key!r} is unknown; known are {', '.join(sorted(known))}")
    name = _convert(Preset, given.get("preset", Preset.CHAMELEON.value), "preset")
    policy = {key: given[key] for key in POLICY if key in given}
    return Settings(
        policy=_changed(preset(name), policy, ""),
        serving=_changed(ServingSettings(), given.get("serving", {}), "serving."),
        preset=name,
    )


def _changed(base: T, given: Any, path: str) -> T:
    """`base` with the given fields changed, checked one by one."""
    if not isinstance(given, Mapping):
        raise ConfigError(f"setting {path[:-1]!r} is {given!r}; it takes a table of settings")
    hints = get_type_hints(type(base))
    changes: dict[str, Any] = {}
    for key, value in given.items():
        if f"{path}{key}" in GONE:
            raise ConfigError(f"setting '{path}{key}' is no more: {GONE[path + key]}")
        if key not in hints:
            names = ", ".join(sorted(hints))
            raise ConfigError(f"setting '{path}{key}' is unknown; known here are {names}")
        current = getattr(base, key)
        if dataclasses.is_dataclass(current):
            changes[key] = _changed(current, value, f"{path}{key}.")
        else:
            changes[key] = _convert(hints[key], value, f"{path}{key}")
    try:
        return dataclasses.replace(base, **changes)  # type: ignore[type-var]  # T is a dataclass
    except ConfigError as error:
        if str(error).startswith(path):
            raise
        raise ConfigError(f"settings of '{path[:-1]}': {error}") from error


def _convert(kind: Any, value: Any, path: str) -> Any:
    """The value as `kind`, or ConfigError."""
    is_number = isinstance(value, int | float)
    if kind is float and is_number and not abs(value) <= sys.float_info.max:
        shown = value if isinstance(value, float) else "above all floats"
        raise ConfigError(f"setting '{path}' is {shown}; it takes a finite number")
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        choices: list[Enum] = list(kind) if isinstance(kind, EnumType) else []
        takes = f"use one of {', '.join(choice.value for choice in choices)}"
        if not choices:
            named, *_ = get_args(kind) or (kind,)  # one that may be unset: by what else it is
            of = "list of values" if get_origin(kind) is tuple else "value"
            takes = f"it takes a {of} of type {getattr(named, '__name__', named)}"
        raise ConfigError(f"setting '{path}' is {value!r}; {takes}") from error
