"""Which keys a server asks for, by its settings; and that its app asks for them."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.api.auth import guard
from chameleon_lora.engine_vllm.api.keys import api_keys_of
from chameleon_lora.errors import ConfigError
from chameleon_lora.settings import ServingSettings
from chameleon_lora.tenants import hash_key
from tests.engine_vllm.asgi_client import ask
from tests.engine_vllm.tenant_settings import ACME, ADMIN, tenants_text

fastapi = pytest.importorskip("fastapi")
OK, UNAUTHORIZED = 200, 401


@pytest.fixture
def file(tmp_path: Path) -> str:
    """The path of a file of two tenants."""
    path = tmp_path / "tenants.toml"
    path.write_text(tenants_text())
    return str(path)


def test_without_keys_and_tenants_there_is_no_middleware() -> None:
    """vLLM's own --api-key works as ever."""
    assert api_keys_of(ServingSettings(), ["mine"], can_change=True) is None


def test_the_servers_own_key_goes_with_an_admin_key() -> None:
    """It is kept, to spare the admin from sending both."""
    serving = ServingSettings(admin_key_hash=hash_key(ADMIN))
    keys = api_keys_of(serving, ["mine", "other"], can_change=True)
    assert keys is not None
    assert (None, "mine", True) == (keys.tenants, keys.server_key, keys.has_controls)


def test_the_servers_own_key_is_refused_beside_tenants(file: str) -> None:
    """The message names both and the way out."""
    with pytest.raises(ConfigError, match=r"--api-key .*serving.tenants.*--admin-key-file"):
        api_keys_of(ServingSettings(tenants=file), ["mine"], can_change=True)


def test_no_key_is_the_admins_and_a_tenants(file: str) -> None:
    """The message names the file and the tenant."""
    serving = ServingSettings(tenants=file, admin_key_hash=hash_key(ACME))
    with pytest.raises(ConfigError, match=r"tenants\.toml: tenant 'acme'.*serving.admin_key_hash"):
        api_keys_of(serving, [], can_change=True)


def test_a_file_that_cannot_be_used_ends_the_start(file: str) -> None:
    """So nobody serves without the limits that were meant."""
    Path(file).write_text("[tenants.acme]\nkeys = 3")
    with pytest.raises(ConfigError, match="tenant 'acme': keys"):
        api_keys_of(ServingSettings(tenants=file), [], can_change=True)


async def metrics() -> str:
    """A page."""
    return "m"


def guarded(serving: dict[str, Any], api_key: list[str] | None = None) -> Any:
    """An app as vLLM builds it: routes, the middleware, then more middleware."""
    app = fastapi.FastAPI()
    app.add_api_route("/metrics", metrics)
    guard(app, SimpleNamespace(api_key=api_key), ServingSettings(**serving), can_change=True)
    return app


@pytest.mark.vllm
@pytest.mark.slow
def test_the_app_asks_for_keys(file: str) -> None:
    """Whatever is added to it later; and only if the settings say so."""
    pytest.importorskip("vllm")
    app = guarded({"tenants": file, "admin_key_hash": hash_key(ADMIN)})
    assert UNAUTHORIZED == ask(app, "GET", "/metrics").status
    assert OK == ask(app, "GET", "/metrics", headers={"authorization": f"Bearer {ADMIN}"}).status
    assert OK == ask(guarded({}), "GET", "/metrics").status


@pytest.mark.vllm
@pytest.mark.slow
def test_the_servers_own_key_is_where_vllm_reads_it(
    file: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In its arguments, or without one there, in the environment."""
    pytest.importorskip("vllm")
    with pytest.raises(ConfigError, match="--api-key"):
        guarded({"tenants": file}, api_key=["mine"])
    monkeypatch.setenv("VLLM_API_KEY", "mine")
    with pytest.raises(ConfigError, match="--api-key"):
        guarded({"tenants": file})
