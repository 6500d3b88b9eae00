"""Requests of which two readers could make different things, as they come over a socket."""

import asyncio
from pathlib import Path

import pytest

from tests.engine_vllm.api.test_body import served
from tests.engine_vllm.tenant_settings import ACME, ADMIN, GuardedApp, tenants_text

HIDDEN = f"GET /v1/models HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ADMIN}\r\n\r\n"
LENGTHS = {
    "two": f"Content-Length: 5\r\nContent-Length: {5 + len(HIDDEN)}",
    "a length beside pieces": f"Content-Length: {5 + len(HIDDEN)}\r\nTransfer-Encoding: chunked",
    "below zero": "Content-Length: -5",
    "no number": "Content-Length: +5",
}


async def status_of(app: GuardedApp, request: str) -> int:
    """That of the first answer, before which the client sends nothing more."""
    async with served(app.middleware, http="httptools") as (_, port):
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        writer.write(request.encode())
        status = int((await reader.readline()).split()[1])
        writer.close()
    return status


@pytest.mark.parametrize("lengths", LENGTHS)
def test_a_body_of_two_lengths_hides_no_request(tmp_path: Path, lengths: str) -> None:
    """400; neither it nor what stands in it, for one that believes the other length, reaches the server.

    With httptools, which vLLM installs. h11 takes pieces before a length, as HTTP says.
    """
    pytest.importorskip("httptools")
    (tmp_path / "tenants.toml").write_text(tenants_text())
    app = GuardedApp.build(tmp_path / "tenants.toml")
    head = f"POST /v1/completions HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer {ACME}"
    request = f"{head}\r\n{LENGTHS[lengths]}\r\n\r\n0\r\n\r\n{HIDDEN}"
    assert 400 == asyncio.run(status_of(app, request))
    assert [] == app.behind.seen
