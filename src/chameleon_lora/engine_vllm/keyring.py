"""Which keys open what on this server, from its settings, and the gate that asks for them."""

from pathlib import Path
from typing import Any

from chameleon_lora.engine_vllm import tenant_patch
from chameleon_lora.engine_vllm.config import CONFIG_KEY
from chameleon_lora.engine_vllm.gate import Gate, Keyring
from chameleon_lora.engine_vllm.tenant_file import TenantFile
from chameleon_lora.errors import ConfigError
from chameleon_lora.settings import ServingSettings, parse_settings
from chameleon_lora.tenants import parse_hash

ADMIN_KEY_HASH = "serving.admin_key_hash"


def guard(app: Any, args: Any, *, can_change: bool) -> None:
    """Afterwards the FastAPI app lets in whom the settings in vLLM's arguments let in.

    Without an admin key and without tenants it stays as it is. `can_change` as for `control_api.attach`.

    Raises:
        ConfigError: the keys or the tenants' file cannot be used.
        UnsupportedEngineError: with tenants, if this vLLM cannot keep them apart.
    """
    from vllm import envs

    given = getattr(args, "additional_config", None) or {}
    serving = parse_settings(given.get(CONFIG_KEY, {})).serving
    given_keys = getattr(args, "api_key", None) or [envs.VLLM_API_KEY]
    server_keys = [key for key in given_keys if key]
    keys = keyring_of(serving, server_keys, can_change=can_change)
    if keys is None:
        return
    if keys.tenants is not None:
        tenant_patch.require_pieces()
    stock = app.build_middleware_stack
    # Outside of all that vLLM adds later: what is refused here reaches nothing.
    app.build_middleware_stack = lambda: Gate(stock(), keys)


def keyring_of(
    serving: ServingSettings, server_keys: list[str], *, can_change: bool
) -> Keyring | None:
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
        return Keyring(admin, None, can_change, server_key)
    if server_key is not None:
        raise ConfigError(
            f"--api-key (or VLLM_API_KEY) is given beside serving.tenants = {serving.tenants!r}: "
            "tenants have keys of their own; leave it out, and give the admin "
            "--admin-key-file"
        )
    tenants = TenantFile(Path(serving.tenants), serving.scan_s)
    owner = None if admin is None else tenants.roster.find(admin)
    if owner is not None:
        raise ConfigError(
            f"tenants file {serving.tenants}: tenant {owner.name!r}: a key of it is also the "
            f"admin's ({ADMIN_KEY_HASH}); give each its own"
        )
    return Keyring(admin, tenants, can_change)
