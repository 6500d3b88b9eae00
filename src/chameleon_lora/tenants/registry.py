"""All tenants of a server, from a file in TOML."""

import dataclasses
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from chameleon_lora.errors import ConfigError
from chameleon_lora.tenants.keys import KeyHash, is_one_of, parse_hash
from chameleon_lora.tenants.tenant import Tenant

TABLE = "tenants"
_WORDS = {
    "base_model": (bool, "true or false"),
    "share_prefixes": (bool, "true or false"),
    "weight": (float, "a number"),
    "requests_per_s": (float, "a number"),
    "burst": (int, "a whole number"),
    "input_tokens_per_minute": (int, "a whole number"),
    "output_tokens_per_minute": (int, "a whole number"),
}


@dataclass(frozen=True, slots=True)
class TenantRegistry:
    """The tenants; no key is two tenants'."""

    tenants: tuple[Tenant, ...]
    names: frozenset[str] = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", frozenset(tenant.name for tenant in self.tenants))

    def find(self, digest: KeyHash) -> Tenant | None:
        """Whose key has this hash; takes the same time whoever it is."""
        found = None
        for tenant in self.tenants:
            if is_one_of(digest, tenant.keys):
                found = tenant
        return found


def parse_tenants(text: str, file: str) -> TenantRegistry:
    """The tenants in a file's text; `file` is how messages name it.

    Raises:
        ConfigError: naming file, tenant, key, value, and what is allowed.
    """
    try:
        given = tomllib.loads(text)
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"tenants file {file} is not TOML: {error}") from error
    for key in given:
        if key != TABLE:
            raise ConfigError(
                f"tenants file {file}: {key!r} is unknown; it holds tables [{TABLE}.NAME]"
            )
    tables = given.get(TABLE)
    if not isinstance(tables, Mapping) or not tables:
        raise ConfigError(
            f"tenants file {file} has 0 tenants, the least is 1: add a table [{TABLE}.NAME] with "
            "keys, or serve without the file"
        )
    roster = TenantRegistry(tuple(_tenant(name, table, file) for name, table in tables.items()))
    _require_own_keys(roster, file)
    return roster


def _tenant(name: str, table: object, file: str) -> Tenant:
    place = f"tenants file {file}: tenant {name!r}"
    if not isinstance(table, Mapping):
        raise ConfigError(f"{place} is {table!r}; it takes a table [{TABLE}.{name}]")
    try:
        return Tenant(name, **{key: _value(key, value) for key, value in table.items()})
    except ConfigError as error:
        raise ConfigError(f"{place}: {error}") from error
    except TypeError as error:  # the one that may be missing
        raise ConfigError(f"{place}: keys is missing; give the hash of 1 key or more") from error


def _value(key: str, value: Any) -> Any:
    if key == "keys":
        return tuple(parse_hash(text, f"keys[{i}]") for i, text in enumerate(_list(key, value)))
    if key == "adapters":
        for pattern in _list(key, value):
            if not isinstance(pattern, str) or not pattern:
                raise ConfigError(f"adapters holds {pattern!r}; use names or patterns as 'a-*'")
        return tuple(value)
    if key not in _WORDS:
        known = sorted(f.name for f in dataclasses.fields(Tenant) if f.name != "name")
        raise ConfigError(f"key {key!r} is unknown; known are {', '.join(known)}")
    kind, words = _WORDS[key]
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if kind is float and is_number:
        return value
    if not isinstance(value, kind) or (kind is int and not is_number):
        raise ConfigError(f"{key} is {value!r}; use {words}")
    return value


def _list(key: str, value: object) -> list[Any]:
    if not isinstance(value, list):
        raise ConfigError(f"{key} is of type {type(value).__name__}; use a list of strings")
    return value


def _require_own_keys(roster: TenantRegistry, file: str) -> None:
    owners: dict[KeyHash, str] = {}
    for tenant in roster.tenants:
        for number, known in enumerate(tenant.keys):
            owner = owners.setdefault(known, tenant.name)
            if owner != tenant.name:
                raise ConfigError(
                    f"tenants file {file}: tenant {tenant.name!r}: keys[{number}] is also a key of "
                    f"{owner!r}; give each tenant its own"
                )
