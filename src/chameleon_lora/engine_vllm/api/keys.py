"""Which keys open what on this server, from its settings."""

from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.engine_vllm.api.tenant_file import TenantFile
from chameleon_lora.errors import ConfigError
from chameleon_lora.settings import ServingSettings
from chameleon_lora.tenants import KeyHash, parse_hash

ADMIN_KEY_HASH = "serving.admin_key_hash"


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Which keys open what.

    Attributes:
        admin: None without an admin key: then, with tenants, nobody is the admin.
        tenants: None on a server without tenants.
        has_controls: whether adapters can be loaded, unloaded and pinned at all.
        server_key: vLLM's own --api-key, which the admin is spared; None without.
    """

    admin: KeyHash | None
    tenants: TenantFile | None
    has_controls: bool
    server_key: str | None = None


def api_keys_of(
    serving: ServingSettings, server_keys: list[str], *, can_change: bool
) -> ApiKeys | None:
    """The keys of a server, or None if it asks for none but vLLM's own.

    Raises:
        ConfigError: the tenants' file cannot be used, or a key would be two things at once.
    """
    if not (serving.admin_key_hash or serving.tenants):
        return None
    admin = None
    if serving.admin_key_hash:
        admin = parse_hash(serving.admin_key_hash, ADMIN_KEY_HASH)
    server_key = server_keys[0] if server_keys else None
    if not serving.tenants:
        return ApiKeys(admin, None, can_change, server_key)
    if server_key is not None:
        raise ConfigError(
            f"--api-key (or VLLM_API_KEY) is given beside serving.tenants = {serving.tenants!r}: "
            "tenants have keys of their own; leave it out, and give the admin "
            "--admin-key-file"
        )
    return ApiKeys(admin, TenantFile(Path(serving.tenants), serving.scan_s, admin), can_change)
