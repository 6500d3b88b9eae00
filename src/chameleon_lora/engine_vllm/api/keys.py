"""Which keys open what on this server, from its settings."""

from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.engine_vllm.api.followed_file import FollowedFile
from chameleon_lora.engine_vllm.api.tenant_file import TenantFile, follow_tenants
from chameleon_lora.errors import ConfigError
from chameleon_lora.settings import ServingSettings
from chameleon_lora.tenants import KeyHash, hash_key, parse_hash

ADMIN_KEY_HASH = "serving.admin_key_hash"
AdminKey = FollowedFile[KeyHash] | KeyHash | None


@dataclass(frozen=True, slots=True)
class ApiKeys:
    """Which keys open what.

    Attributes:
        admin: its key, or a file of it; None without: then, with tenants, nobody is the admin.
        tenants: None on a server without tenants.
        has_controls: whether adapters can be loaded, unloaded and pinned at all.
        server_key: vLLM's own --api-key, which the admin is spared; None without.
    """

    admin: AdminKey
    tenants: TenantFile | None
    has_controls: bool
    server_key: str | None = None

    async def admin_key(self, now_s: float) -> KeyHash | None:
        """The admin's, as its file is now if it has one."""
        if isinstance(self.admin, FollowedFile):
            await self.admin.follow(now_s)
        return _known(self.admin)


def api_keys_of(
    serving: ServingSettings, server_keys: list[str], *, can_change: bool
) -> ApiKeys | None:
    """The keys of a server, or None if it asks for none but vLLM's own.

    Raises:
        ConfigError: a file cannot be used, or a key would be two things at once.
    """
    if not serving.asks_for_keys:
        return None
    server_key = server_keys[0] if server_keys else None
    if serving.tenants and server_key is not None:
        raise ConfigError(
            f"--api-key (or VLLM_API_KEY) is given beside serving.tenants = {serving.tenants!r}: "
            "tenants have keys of their own; leave it out, and give the admin "
            "--admin-key-file"
        )
    others: list[TenantFile] = []
    admin = _admin_key(serving, others)
    if serving.tenants:
        path = Path(serving.tenants)
        others.append(follow_tenants(path, serving.scan_s, lambda: _known(admin)))
    return ApiKeys(admin, others[0] if others else None, can_change, server_key)


def _admin_key(serving: ServingSettings, others: list[TenantFile]) -> AdminKey:
    """None without one; in a file, it is no key of these others either, whenever they change."""
    if serving.admin_key_hash:
        return parse_hash(serving.admin_key_hash, ADMIN_KEY_HASH)
    if not serving.admin_key_file:
        return None
    path = Path(serving.admin_key_file)

    def parse(text: str) -> KeyHash:
        try:
            key = parse_hash(hash_key(text.strip()), str(path))
        except ConfigError as error:
            raise ConfigError(f"admin key file {path}: {error}") from error
        if any(file.value.find(key) for file in others):
            raise ConfigError(f"admin key file {path}: a tenant has that key; give each its own")
        return key

    return FollowedFile(path, serving.scan_s, "admin key", parse, lambda _: "the admin key")


def _known(admin: AdminKey) -> KeyHash | None:
    return admin.value if isinstance(admin, FollowedFile) else admin
