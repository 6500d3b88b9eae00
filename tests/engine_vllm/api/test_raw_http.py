"""Requests of which two readers could make different things, as they come over a socket."""

import asyncio
import gzip
import json
from pathlib import Path

import pytest

from tests.engine_vllm.http_server import served
from tests.engine_vllm.tenant_settings import ACME, ADMIN, GuardedApp, tenants_text

HIDDEN = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n\r\n"
LENGTHS = {
    "two": f"Content-Length: 5\r\nContent-Length: {5 + len(HIDDEN)}",
    "a length beside pieces": f"Content-Length: {5 + len(HIDDEN)}\r\nTransfer-Encoding: chunked",
    "below zero": "Content-Length: -5",
    "no number": "Content-Length: +5",
}


AS_ACME = f"Host: x\r\nAuthorization: Bearer {ACME}\r\n"
UPGRADE = (
    "Connection: Upgrade, HTTP2-Settings\r\nUpgrade: h2c\r\nHTTP2-Settings: AAMAAABkAAQAAP__\r\n"
)
FORMS = {
    "1.0 without a key": (401, "GET /v1/models HTTP/1.0\r\n\r\n"),
    "1.0": (401, f"GET /chameleon/state HTTP/1.0\r\n{AS_ACME}\r\n"),
    "another method": (
        404,
        f"POST /v1/models HTTP/1.1\r\n{AS_ACME}X-HTTP-Method-Override: GET\r\nContent-Length: 0\r\n\r\n",
    ),
    "an upgrade to HTTP/2": (401, f"GET /chameleon/state HTTP/1.1\r\n{AS_ACME}{UPGRADE}\r\n"),
}


async def status_of(app: GuardedApp, request: bytes, http: str = "httptools") -> int:
    """That of the first answer, before which the client sends nothing more."""
    async with served(app.middleware, http=http) as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request)
        status = int((await reader.readline()).split()[1])
        writer.close()
    return status


@pytest.fixture
def app(tmp_path: Path) -> GuardedApp:
    """A server with tenants."""
    (tmp_path / "tenants.toml").write_text(tenants_text())
    return GuardedApp.build(tmp_path / "tenants.toml")


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_body_of_two_lengths_hides_no_request(app: GuardedApp, lengths: str) -> None:
    """400; neither it nor what stands in it, for one that believes the other length, reaches the server.

    With httptools, which vLLM installs. h11 takes pieces before a length, as HTTP says.
    """
    pytest.importorskip("httptools")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ACME}"
    request = f"{head}\r\n{LENGTHS[lengths]}\r\n\r\n0\r\n\r\n{HIDDEN}"
    assert 400 == asyncio.run(status_of(app, request.encode()))
    assert [] == app.behind.seen


@pytest.mark.parametrize("http", ["h11", "httptools"])
@pytest.mark.parametrize("form", FORMS)
def test_no_form_of_a_request_gets_more(app: GuardedApp, form: str, http: str) -> None:
    """Another version of HTTP, an upgrade to it, another method in a header: one's own rights, and no others."""
    pytest.importorskip(http)
    status, request = FORMS[form]
    assert status == asyncio.run(status_of(app, request.encode(), http))
    assert [] == app.behind.seen


def test_an_old_version_of_http_is_answered(app: GuardedApp) -> None:
    """As any other."""
    assert 200 == asyncio.run(status_of(app, f"GET /v1/models HTTP/1.0\r\n{AS_ACME}\r\n".encode()))


@pytest.mark.parametrize(
    "number", ["x" * 8192, "%n%s%s", "\u202eid"], ids=["long", "format", "turned"]
)
def test_a_requests_own_id_is_a_text(app: GuardedApp, number: str) -> None:
    """However long and of whatever letters: it goes on behind the tenant's name."""
    body = b'{"model": "acme-1", "prompt": "x"}'
    head = f"POST /v1/completions HTTP/1.1\r\n{AS_ACME}X-Request-Id: {number}\r\nContent-Length: {len(body)}\r\n\r\n"
    assert 200 == asyncio.run(status_of(app, head.encode() + body))
    (seen,) = app.behind.seen
    assert f"acme:{number}".encode() == seen["headers"]["x-request-id"].encode("latin-1")


def test_a_compressed_body_is_not_unpacked(app: GuardedApp) -> None:
    """400, whatever it would grow to."""
    body = gzip.compress(json.dumps({"model": "acme-1", "prompt": "x" * 100_000}).encode())
    head = f"POST /v1/completions HTTP/1.1\r\n{AS_ACME}Content-Encoding: gzip\r\nContent-Length: {len(body)}\r\n\r\n"
    assert 400 == asyncio.run(status_of(app, head.encode() + body))
    assert [] == app.behind.seen
