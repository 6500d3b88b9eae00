"""The tenants' file, read again when it changes."""

import asyncio
import contextlib
import os
import re
import resource
import threading
from pathlib import Path

import pytest

from chameleon_lora.engine_vllm.api.tenant_file import TenantFile, follow_tenants
from chameleon_lora.errors import ConfigError
from chameleon_lora.tenants import hash_key, parse_hash
from tests.adapters.failing_files import HungDisk
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
    return [tenant.name for tenant in file.value.tenants]


def replace(path: Path, text: str) -> None:
    """Another file takes its place, as editors do it."""
    new = path.with_suffix(".new")
    new.write_text(text)
    new.replace(path)


def test_a_changed_file_is_read_again(path: Path) -> None:
    """At the next look, and looks are `scan_s` apart."""
    file = follow_tenants(path, SCAN_S)
    assert ["acme", "bob"] == names(file, 0.0)
    replace(path, tenants_text().replace("bob", "carol"))
    assert ["acme", "bob"] == names(file, 0.5 * SCAN_S)
    assert ["acme", "carol"] == names(file, SCAN_S)


@pytest.mark.parametrize("text", ["[tenants", "", "[tenants.x]\nkeys = []"])
def test_a_broken_file_keeps_the_former(
    path: Path, caplog: pytest.LogCaptureFixture, text: str
) -> None:
    """The log says why, once; a good file is taken up again, and the log says so."""
    file = follow_tenants(path, SCAN_S)
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
    file = follow_tenants(path, SCAN_S)
    path.unlink()
    assert ["acme", "bob"] == names(file, SCAN_S)
    assert "cannot be read" in caplog.text


def test_at_the_start_a_file_must_be_good(path: Path) -> None:
    """Missing, broken or no text: the message names the file."""
    path.write_bytes(b"\xff")
    with pytest.raises(ConfigError, match="not UTF-8"):
        follow_tenants(path, SCAN_S)
    path.unlink()
    with pytest.raises(ConfigError, match=f"{path} cannot be read"):
        follow_tenants(path, SCAN_S)


def test_a_file_written_in_place_with_its_old_time_is_read_again(path: Path) -> None:
    """As `cp -p` and `rsync --times` leave it."""
    file = follow_tenants(path, SCAN_S)
    before = path.stat()
    path.write_text(tenants_text().replace("bob", "rob"))
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))
    assert ["acme", "rob"] == names(file, SCAN_S)


def test_a_look_that_failed_is_had_again(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """A key that was taken out is out as soon as the file can be read, though it changed no more."""
    file = follow_tenants(path, SCAN_S)
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    free = os.open("/dev/null", os.O_RDONLY)  # the number of the next descriptor
    os.close(free)
    loop = asyncio.new_event_loop()  # which needs descriptors of its own, and modules
    loop.run_until_complete(file.follow(0.0))
    replace(path, tenants_text().replace("bob", "carol"))
    resource.setrlimit(resource.RLIMIT_NOFILE, (free + 3, hard))
    held = hold_all()
    try:
        loop.run_until_complete(file.follow(SCAN_S))
    finally:
        for descriptor in held:
            os.close(descriptor)
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
    assert "Too many open files" in caplog.text
    assert ["acme", "bob"] == [tenant.name for tenant in file.value.tenants]
    loop.run_until_complete(file.follow(2 * SCAN_S))
    loop.close()
    assert ["acme", "carol"] == [tenant.name for tenant in file.value.tenants]


def hold_all() -> list[int]:
    """Descriptors, until there are no more."""
    held = []
    with contextlib.suppress(OSError):
        while True:
            held.append(os.open("/dev/null", os.O_RDONLY))
    return held


def test_a_pipe_in_its_place_is_no_file(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Nobody waits for what will be written into it, neither a request nor the server's end."""
    file = follow_tenants(path, SCAN_S)
    path.unlink()
    os.mkfifo(path)
    assert ["acme", "bob"] == names(file, SCAN_S)
    assert "cannot be read" in caplog.text
    with pytest.raises(ConfigError, match="regular file"):
        follow_tenants(path, SCAN_S)


def test_a_disk_that_hangs_holds_up_neither_a_request_nor_the_end(
    path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """The log says so once, the process waits for no thread that hangs, and what is new is read at last."""
    file, loop = follow_tenants(path, SCAN_S, look_s=0.25), asyncio.new_event_loop()
    replace(path, tenants_text().replace("bob", "carol"))
    others, disk = set(threading.enumerate()), HungDisk(monkeypatch, path.__eq__)
    for look in (1, 2):
        loop.run_until_complete(file.follow(look * SCAN_S))
    hanging = set(threading.enumerate()) - others
    disk.set()
    assert {True} == {thread.daemon for thread in hanging}
    for thread in hanging:
        thread.join()
    assert 1 == caplog.text.count("cannot be read in 0.25 s")
    loop.run_until_complete(file.follow(3 * SCAN_S))
    loop.close()
    assert ["acme", "carol"] == [tenant.name for tenant in file.value.tenants]


def test_a_new_file_gives_no_tenant_the_admins_key(
    path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Nor does it at the start; the former tenants stay."""
    key = tenants_hash(path)
    other = tenants_text().replace(key, hash_key("another-key-0123456789"))
    replace(path, other)
    file = follow_tenants(path, SCAN_S, lambda: parse_hash(key, "admin"))
    replace(path, tenants_text())
    assert ["acme", "bob"] == names(file, SCAN_S)
    assert "also the admin's" in caplog.text
    with pytest.raises(ConfigError, match="also the admin's"):
        follow_tenants(path, SCAN_S, lambda: parse_hash(key, "admin"))


def tenants_hash(path: Path) -> str:
    """The hash of the first tenant's key."""
    return str(re.findall(r"sha256:[0-9a-f]{64}", path.read_text())[0])
