"""The tenants' file, read again when it changes."""

import asyncio
import os
from pathlib import Path

import pytest

from chameleon_lora.engine_vllm.api.tenant_file import TenantFile
from chameleon_lora.errors import ConfigError
from tests.engine_vllm.tenant_settings import SCAN_S, tenants_text


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """A file of two tenants."""
    path = tmp_path / "tenants.toml"
    path.write_text(tenants_text())
    return path


def names(file: TenantFile, now_s: float) -> list[str]:
    """The tenants after a look at this time."""
    asyncio.run(file.follow(now_s))
    return [tenant.name for tenant in file.registry.tenants]


def replace(path: Path, text: str) -> None:
    """Another file takes its place, as editors do it."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_a_changed_file_is_read_again(path: Path) -> None:
    """At the next look, and looks are `scan_s` apart."""
    file = TenantFile(path, SCAN_S)
    assert ["acme", "bob"] == names(file, 0.0)
    replace(path, tenants_text().replace("bob", "carol"))
    assert ["acme", "bob"] == names(file, 0.5 * SCAN_S)
    assert ["acme", "carol"] == names(file, SCAN_S)


@pytest.mark.parametrize("text", ["[tenants", "", "[tenants.x]\nkeys = []"])
def test_a_broken_file_keeps_the_former(
    path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """The log says why, once; a good file is taken up again, and the log says so."""
    file = TenantFile(path, SCAN_S)
    replace(path, text)
    for look in (1, 2):
        assert ["acme", "bob"] == names(file, look * SCAN_S)
    at_start, record = caplog.records
    assert ["INFO", "ERROR"] == [at_start.levelname, record.levelname]
    assert str(path) in record.getMessage()
    replace(path, tenants_text().replace("bob", "carol"))
    assert ["acme", "carol"] == names(file, 3 * SCAN_S)
    assert f"Read 2 tenants from {path}" == caplog.records[-1].getMessage()


def test_a_file_that_has_gone_keeps_the_former(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The same."""
    file = TenantFile(path, SCAN_S)
    path.unlink()
    assert ["acme", "bob"] == names(file, SCAN_S)
    assert "cannot be read" in caplog.text


def test_at_the_start_a_file_must_be_good(path: Path) -> None:
    """Missing, broken or no text: the message names the file."""
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        TenantFile(path, SCAN_S)
    path.unlink()
    with pytest.raises(ConfigError, match=f"{path} cannot be read"):
        TenantFile(path, SCAN_S)


def test_an_untouched_file_is_not_read(path: Path) -> None:
    """With the same status it stays as it was read, whatever it holds."""
    file = TenantFile(path, SCAN_S)
    before = path.stat()
    path.write_text(tenants_text().replace("bob", "rob"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ["acme", "bob"] == names(file, SCAN_S)
