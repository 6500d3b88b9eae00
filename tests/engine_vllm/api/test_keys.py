"""Which keys a server asks for, by its settings; and that its app asks for them."""

import asyncio
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.api.auth import guard
from chameleon_lora.engine_vllm.api.keys import ApiKeys, api_keys_of
from chameleon_lora.errors import ConfigError
from chameleon_lora.settings import ServingSettings
from chameleon_lora.tenants import hash_key, parse_hash
from tests.engine_vllm.asgi_client import ask
from tests.engine_vllm.tenant_settings import ACME, ADMIN, GuardedApp, tenants_text

fastapi = pytest.importorskip("fastapi")
OK, UNAUTHORIZED = 200, 401
OTHER = "another-key-0123456789"


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


def opened(keys: ApiKeys | None, path: Path, text: str, now_s: float) -> list[str]:
    """Which of these keys are the admin's at this time, once the file has that text."""
    assert keys is not None
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)
    found = asyncio.run(keys.admin_key(now_s))
    return [key for key in (ADMIN, OTHER, ACME) if found == parse_hash(hash_key(key), "key")]


def test_a_new_admin_key_needs_no_restart(
    file: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The former one opens nothing from the next look on; one that will not do changes nothing, and is told."""
    path = tmp_path / "admin.key"
    path.write_text(ADMIN)
    serving = ServingSettings(tenants=file, admin_key_file=str(path), scan_s=1.0)
    keys = api_keys_of(serving, [], can_change=True)
    assert [ADMIN] == opened(keys, path, f"{ADMIN}\n", 0.0)
    assert [ADMIN] == opened(keys, path, OTHER, 0.5)
    assert [OTHER] == opened(keys, path, OTHER, 1.0)
    for look, (text, why) in enumerate([("short", "16"), ("", "16"), (ACME, "a tenant has")], 2):
        assert [OTHER] == opened(keys, path, text, float(look))
        assert why in caplog.records[-1].getMessage()
    path.unlink()
    assert keys is not None
    asyncio.run(keys.admin_key(9.0))
    assert f"admin key file {path} cannot be read" in caplog.text
    assert not any(key in caplog.text for key in (ADMIN, OTHER, ACME))


def test_a_tenant_is_not_given_the_new_admin_key(file: str, tmp_path: Path) -> None:
    """At the start neither; the former tenants stay."""
    path = tmp_path / "admin.key"
    path.write_text(ACME)
    serving = ServingSettings(tenants=file, admin_key_file=str(path), scan_s=1.0)
    with pytest.raises(ConfigError, match=r"tenant 'acme'.*also the admin's"):
        api_keys_of(serving, [], can_change=True)
    path.write_text(ADMIN)
    keys = api_keys_of(serving, [], can_change=True)
    assert keys is not None
    assert keys.tenants is not None
    assert [OTHER] == opened(keys, path, OTHER, 1.0)
    Path(file).write_text(tenants_text().replace(hash_key(ACME), hash_key(OTHER)))
    asyncio.run(keys.tenants.follow(2.0))
    assert keys.tenants.value.find(parse_hash(hash_key(OTHER), "key")) is None


def test_a_request_sees_the_new_admin_key(tmp_path: Path) -> None:
    """The middleware asks for it each time."""
    path = tmp_path / "admin.key"
    path.write_text(ADMIN)
    serving = ServingSettings(admin_key_file=str(path), scan_s=1.0)
    keys = api_keys_of(serving, [], can_change=True)
    assert keys is not None
    app = GuardedApp(keys)
    asked = ("GET", "/chameleon/state")
    assert OK == app.ask(*asked, key=ADMIN).status
    app.now_s = 2.0
    path.write_text(OTHER)
    assert [UNAUTHORIZED, OK] == [app.ask(*asked, key=key).status for key in (ADMIN, OTHER)]


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
