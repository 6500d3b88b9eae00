"""All tenants of a server, from a file in TOML."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, get_args, get_origin, get_type_hints

import msgspec

from chameleon_lora.errors import ConfigError
from chameleon_lora.tenants.keys import KeyHash, is_one_of, parse_hash
from chameleon_lora.tenants.tenant import Tenant

TABLE = "tenants"
_KINDS = {key: kind for key, kind in get_type_hints(Tenant).items() if key != "name"}
_WORDS = {
    bool: "true or false",
    float: "a number",
    int: "a whole number",
    tuple: "a list of names or patterns as 'a-*'",
}


@dataclass(frozen=True, slots=True)
class TenantRegistry:
    """The tenants of one reading of the file; no key is two tenants'."""

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
    registry = TenantRegistry(tuple(_tenant(name, table, file) for name, table in tables.items()))
    _require_own_keys(registry, file)
    return registry


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
    if key not in _KINDS:
        raise ConfigError(f"key {key!r} is unknown; known are {', '.join(sorted(_KINDS))}")
    if key == "keys":
        if not isinstance(value, list):  # and is not shown: it may be a key
            raise ConfigError(f"keys is of type {type(value).__name__}; use a list of strings")
        return tuple(parse_hash(text, f"keys[{i}]") for i, text in enumerate(value))
    kind = _KINDS[key]
    try:
        return msgspec.convert(value, kind)
    except msgspec.ValidationError as error:
        kinds = (kind, get_origin(kind), *get_args(kind))
        words = next(words for plain, words in _WORDS.items() if plain in kinds)
        raise ConfigError(f"{key} is {value!r}; use {words}") from error


def _require_own_keys(registry: TenantRegistry, file: str) -> None:
    owners: dict[KeyHash, str] = {}
    for tenant in registry.tenants:
        for number, known in enumerate(tenant.keys):
            owner = owners.setdefault(known, tenant.name)
            if owner != tenant.name:
                raise ConfigError(
                    f"tenants file {file}: tenant {tenant.name!r}: keys[{number}] is also a key of "
                    f"{owner!r}; give each tenant its own"
                )
