"""Tenants and keys for tests, and a server that tells what reached it."""

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from chameleon_lora.engine_vllm.api.auth import AuthMiddleware
from chameleon_lora.engine_vllm.api.body import BodyLimits, Message, Receive, Send
from chameleon_lora.engine_vllm.api.caller import CALLER, CallerContext
from chameleon_lora.engine_vllm.api.keys import ApiKeys
from chameleon_lora.engine_vllm.api.tenant_file import follow_tenants
from chameleon_lora.tenants import hash_key, parse_hash
from tests.engine_vllm.asgi_client import AppAnswer, ask

ADMIN, ACME, BOB = "admin-key-0123456", "acme-key-01234567", "bob-key-012345678"
LIMITS = "requests_per_s = 1.0\nburst = 2\noutput_tokens_per_minute = 600"
SCAN_S = 1.0
CONTEXT_TOKENS, MOST_BYTES = 500, 200_000


def tenants_text(limits: str = "") -> str:
    """Two tenants: acme may name acme-* and the base model, bob what begins with bob-."""
    return f"""
[tenants.acme]
keys = ["{hash_key(ACME)}"]
adapters = ["acme-*"]
base_model = true
weight = 2.0
{limits}
[tenants.bob]
keys = ["{hash_key(BOB)}"]
adapters = ["bob-*"]
"""


@dataclass
class Behind:
    """What stands behind the middleware: notes each request and uses as many tokens as it is told to."""

    uses: tuple[int, int] = (0, 0)
    unfinished: int = 0
    seen: list[dict[str, Any]] = field(default_factory=list)
    callers: list[CallerContext | None] = field(default_factory=list)

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """200 with what came."""
        caller = CALLER.get()
        self.callers.append(caller)
        if caller is not None:
            caller.input_tokens, caller.output_tokens = self.uses
            caller.unfinished = self.unfinished
        body = (await receive())["body"] if scope.get("method") in ("POST", "DELETE") else b""
        headers = {name.decode(): value.decode("latin-1") for name, value in scope["headers"]}
        self.seen.append({"path": scope["path"], "headers": headers, "body": body.decode()})
        await send({"type": "http.response.start", "status": 200, "headers": []})
        await send({"type": "http.response.body", "body": json.dumps(self.seen[-1]).encode()})


@dataclass
class GuardedApp:
    """A server's middleware in front of `behind`, whose clock shows `now_s`."""

    keys: ApiKeys
    now_s: float = 0.0
    behind: Behind = field(default_factory=Behind)

    def __post_init__(self) -> None:
        auth = AuthMiddleware(self.behind, self.keys, lambda: CONTEXT_TOKENS, lambda: self.now_s)
        self.middleware = BodyLimits(auth, lambda: MOST_BYTES, lambda: False)

    @classmethod
    def build(
        cls,
        tenants: Path | None = None,
        *,
        admin: str | None = ADMIN,
        has_controls: bool = True,
        server_key: str | None = None,
    ) -> "GuardedApp":
        """With a tenants' file, or without."""
        known = None if admin is None else parse_hash(hash_key(admin), "admin")
        file = None if tenants is None else follow_tenants(tenants, SCAN_S)
        return cls(ApiKeys(known, file, has_controls, server_key))

    def ask(
        self,
        method: str,
        path: str,
        key: str | None = None,
        body: Mapping[str, Any] | bytes = b"",
        **headers: str,
    ) -> AppAnswer:
        """One request, with a key if one is given; underscores stand for dashes in header names."""
        sent = {name.replace("_", "-"): value for name, value in headers.items()}
        if key is not None:
            sent["authorization"] = f"Bearer {key}"
        text = body if isinstance(body, bytes) else json.dumps(body).encode()
        return ask(self.middleware, method, path, text, sent)

    def complete(self, key: str | None, **fields: Any) -> AppAnswer:
        """POST /v1/completions."""
        return self.ask("POST", "/v1/completions", key, {"model": "acme-1", **fields})
