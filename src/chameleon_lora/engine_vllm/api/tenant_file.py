"""The tenants' file, which is followed as it changes."""

from collections.abc import Callable
from pathlib import Path

from chameleon_lora.engine_vllm.api.followed_file import LOOK_S, FollowedFile, read_file
from chameleon_lora.errors import ConfigError
from chameleon_lora.tenants import KeyHash, TenantRegistry, parse_tenants

KIND = "tenants"
TenantFile = FollowedFile[TenantRegistry]


def read_tenants(path: Path) -> TenantRegistry:
    """The tenants a file names.

    Raises:
        ConfigError: it cannot be read, or holds what is not allowed.
    """
    return read_file(path, KIND, lambda text: parse_tenants(text, str(path)))[1]


def follow_tenants(
    path: Path,
    scan_s: float,
    admin: Callable[[], KeyHash | None] = lambda: None,
    look_s: float = LOOK_S,
) -> TenantFile:
    """The file of a server whose admin's key is no tenant's; see FollowedFile.

    Raises:
        ConfigError: the file cannot be used.
    """

    def parse(text: str) -> TenantRegistry:
        registry, key = parse_tenants(text, str(path)), admin()
        owner = None if key is None else registry.find(key)
        if owner is not None:
            raise ConfigError(
                f"tenants file {path}: tenant {owner.name!r}: a key of it is also the admin's "
                "(serving.admin_key_hash, or that of --admin-key-file); give each its own"
            )
        return registry

    return FollowedFile(
        path, scan_s, KIND, parse, lambda found: f"{len(found.tenants)} tenants", look_s
    )
