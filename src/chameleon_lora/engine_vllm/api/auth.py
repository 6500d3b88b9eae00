"""Who gets in: API keys of the admin and of tenants, in front of vLLM's server.

| | without tenants | with tenants |
| --- | --- | --- |
| `GET /health`, `/ping`, `/version` | all | all |
| `OPTIONS` of routes that tenants use | all | all |
| load, unload, pin, unpin, state, arrivals | admin, if there is an admin key | admin |
| `GET /v1/models`, and each route that generates or reads text for a model | all | admin, tenants |
| everything else, `/metrics` too | all | admin |

This middleware stands before all other but the one that limits bodies (`body`). What a tenant may name is for `isolation` to hold.
"""

import math
import time
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from chameleon_lora.engine_vllm.api import body
from chameleon_lora.engine_vllm.api.body import Header, Message, Receive, Send, header_of, refuse
from chameleon_lora.engine_vllm.api.caller import CALLER, CallerContext
from chameleon_lora.engine_vllm.api.keys import ApiKeys, api_keys_of
from chameleon_lora.engine_vllm.api.tenant_file import TenantFile
from chameleon_lora.settings import ServingSettings
from chameleon_lora.tenants import (
    KeyHash,
    RateLimiter,
    Refusal,
    Tenant,
    TokenEstimate,
    digest_of,
    estimate_of,
    is_one_of,
)

OPEN = frozenset({"/health", "/ping", "/version"})
LISTING = "/v1/models"
ADMINS = frozenset({"/chameleon/state", "/chameleon/arrivals"})
CONTROLS = frozenset(
    f"/v1/{verb}_lora_adapter" for verb in ("load", "unload", "pin", "unpin")
) | frozenset({"/adapters"})
ASKING = frozenset(
    {
        *("/v1/completions", "/v1/chat/completions", "/v1/responses"),
        *("/v1/messages", "/v1/messages/count_tokens", "/tokenize", "/detokenize"),
        *("/v1/embeddings", "/pooling", "/classify"),
        *("/score", "/v1/score", "/rerank", "/v1/rerank", "/v2/rerank"),
    }
)
# What one tenant could disturb another by: lanes, ids under which requests are aborted or answers kept.
DROPPED = ("priority", "request_id")
REFUSED = ("previous_response_id", "kv_transfer_params", "background")
ID_HEADER = b"x-request-id"
LOAD_HEADER = b"endpoint-load-metrics-format"  # asks for how full the engine is


def monotonic_s() -> float:
    """Seconds since some fixed moment, which only rise."""
    return time.monotonic()  # noqa: TID251  # the middleware's one clock


class AuthMiddleware:
    """ASGI middleware of one API server. `context_tokens` is asked of its model when they are needed."""

    def __init__(
        self,
        app: Any,
        keys: ApiKeys,
        context_tokens: Callable[[], int],
        clock: Callable[[], float] = monotonic_s,
    ) -> None:
        self._app = app
        self._keys = keys
        self._context_tokens = context_tokens
        self._clock = clock
        self._limiter = RateLimiter()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """The app's answer, or a refusal in OpenAI's form."""
        if scope["type"] not in ("http", "websocket"):
            await self._app(scope, receive, send)
            return
        path = _path(scope)
        if scope.get("method") == "OPTIONS" and self._is_known_to_all(path):
            await self._let_in(CallerContext(None, may_control=False), scope, receive, send)
            return
        digest = digest_of(header_of(scope, b"authorization"))
        admin = await self._keys.admin_key(self._clock())
        if digest is not None and admin is not None and is_one_of(digest, (admin,)):
            await self._let_in(
                CallerContext(None, may_control=True), _with_key(scope, self._keys), receive, send
            )
        elif self._keys.tenants is not None:
            await self._ask_tenant(self._keys.tenants, digest, path, scope, receive, send)
        elif admin is not None and self._is_admins(path):
            await refuse(scope, send, HTTPStatus.UNAUTHORIZED, _needs_admin(path))
        else:
            caller = CallerContext(None, may_control=admin is None)
            await self._let_in(caller, scope, receive, send)

    async def _let_in(
        self, caller: CallerContext, scope: Message, receive: Receive, send: Send
    ) -> None:
        token = CALLER.set(caller)
        try:
            await self._app(scope, receive, send)
        finally:
            CALLER.reset(token)

    def _is_known_to_all(self, path: str) -> bool:
        """Whether browsers may ask, before they send a key, if they may send one."""
        return self._keys.tenants is None or path in ASKING or path in OPEN or path == LISTING

    def _is_admins(self, path: str) -> bool:
        first = f"/{path.split('/')[1]}" if path.startswith("/adapters/") else path
        return path in ADMINS or (self._keys.has_controls and first in CONTROLS)

    async def _ask_tenant(
        self,
        file: TenantFile,
        digest: KeyHash | None,
        path: str,
        scope: Message,
        receive: Receive,
        send: Send,
    ) -> None:
        if path in OPEN and scope["type"] == "http":
            await self._let_in(CallerContext(None, may_control=False), scope, receive, send)
            return
        await file.follow(self._clock())
        self._limiter.keep(file.value.names)
        tenant = None if digest is None else file.value.find(digest)
        method = scope.get("method")
        if tenant is None:
            await refuse(scope, send, HTTPStatus.UNAUTHORIZED, _needs_key(digest))
        elif self._is_admins(path) or path == "/metrics":
            await refuse(scope, send, HTTPStatus.UNAUTHORIZED, _needs_admin(path))
        elif (method, path) != ("GET", LISTING) and (method != "POST" or path not in ASKING):
            await refuse(scope, send, HTTPStatus.NOT_FOUND, "Not Found")
        elif refusal := self._limiter.admit(tenant, self._clock()):
            await _refuse_for_now(scope, send, refusal)
        elif path == LISTING:
            await self._let_in(CallerContext(tenant, may_control=False), scope, receive, send)
        else:
            await self._read(tenant, path, scope, receive, send)

    async def _read(
        self, tenant: Tenant, path: str, scope: Message, receive: Receive, send: Send
    ) -> None:
        """Look at the body before it goes on, and send on no other than was looked at."""
        text = await body.read(receive)
        if text is None:
            return  # the client has gone, or has its answer
        found = await body.parsed(text, DROPPED)
        if found is None:
            reason = "The body is no JSON object; send one with 'model'."
            await refuse(scope, send, HTTPStatus.BAD_REQUEST, reason)
            return
        asked, kept = found
        try:
            for key in REFUSED:
                if asked.get(key):
                    raise ValueError(
                        f"'{key}' is not for tenants: it reaches beyond one request. Leave it out."
                    )
            estimate = estimate_of(path, asked, len(text), self._context_tokens())
        except ValueError as error:
            await refuse(scope, send, HTTPStatus.BAD_REQUEST, str(error))
            return
        inner = {**scope, "headers": _headers(scope, tenant, len(kept))}
        await self._charge(tenant, estimate, inner, body.replay(kept, receive), send)

    async def _charge(
        self, tenant: Tenant, estimate: TokenEstimate, scope: Message, receive: Receive, send: Send
    ) -> None:
        charge = self._limiter.charge(tenant, estimate, self._clock())
        if isinstance(charge, Refusal):
            await _refuse_for_now(scope, send, charge)
            return
        caller = CallerContext(tenant, may_control=False)
        try:
            await self._let_in(caller, scope, receive, send)
        finally:
            self._limiter.settle(charge, _used(caller, charge.estimate), self._clock())


def _used(caller: CallerContext, asked: TokenEstimate) -> TokenEstimate:
    """What counts in the end: what the engine read and wrote.

    Of a prompt that it may have read in part no less than was charged, or leaving early would pay.
    """
    input_tokens = caller.input_tokens
    if caller.unfinished:
        input_tokens = max(input_tokens, asked.input_tokens)
    return TokenEstimate(input_tokens, caller.output_tokens)


async def _refuse_for_now(scope: Message, send: Send, refusal: Refusal) -> None:
    if refusal.retry_s is None:
        await refuse(scope, send, HTTPStatus.BAD_REQUEST, refusal.reason)
        return
    again = (b"retry-after", str(max(1, math.ceil(refusal.retry_s))).encode())
    await refuse(scope, send, HTTPStatus.TOO_MANY_REQUESTS, refusal.reason, again)


def _needs_key(digest: KeyHash | None) -> str:
    what = "No API key was given" if digest is None else "The API key is unknown"
    return f"{what}: send 'Authorization: Bearer KEY' with the key of a tenant."


def _needs_admin(path: str) -> str:
    return f"{path} is for the admin: send 'Authorization: Bearer KEY' with the admin key."


def _path(scope: Message) -> str:
    """As vLLM's router reads it, which also takes a path that ends in a newline."""
    path, root = str(scope["path"]), str(scope.get("root_path", ""))
    if path.startswith(root) and path[len(root) : len(root) + 1] in ("", "/"):
        path = path[len(root) :]
    return path.removesuffix("\n")


def _with_key(scope: Message, keys: ApiKeys) -> Message:
    """As if vLLM's own key had been given: the admin's opens what that opens."""
    if keys.server_key is None:
        return scope
    others = [(k, v) for k, v in scope["headers"] if k.lower() != b"authorization"]
    bearer = (b"authorization", f"Bearer {keys.server_key}".encode())
    return {**scope, "headers": [*others, bearer]}


def _headers(scope: Message, tenant: Tenant, length: int) -> list[Header]:
    """The headers of a request whose body goes on; its id is the tenant's own, whatever it is."""
    replaced = (b"content-length", b"transfer-encoding", ID_HEADER, LOAD_HEADER)
    kept = [(key, value) for key, value in scope["headers"] if key.lower() not in replaced]
    kept.append((b"content-length", str(length).encode()))
    own_id = header_of(scope, ID_HEADER)
    if own_id is not None:
        kept.append((ID_HEADER, f"{tenant.name}:".encode() + own_id))
    return kept


def guard(app: Any, args: Any, serving: ServingSettings, *, can_change: bool) -> None:
    """Afterwards the FastAPI app lets in whom these settings let in, by vLLM's arguments.

    Without an admin key and without tenants it stays as it is. `can_change` as for `routes.attach`.

    Raises:
        ConfigError: the keys or the tenants' file cannot be used.
    """
    from vllm import envs

    given_keys = getattr(args, "api_key", None) or [envs.VLLM_API_KEY]
    server_keys = [key for key in given_keys if key]
    keys = api_keys_of(serving, server_keys, can_change=can_change)
    if keys is None:
        return
    stock = app.build_middleware_stack
    # Outside of all that vLLM adds later: what is refused here reaches nothing.
    app.build_middleware_stack = lambda: AuthMiddleware(
        stock(), keys, lambda: int(getattr(body.model_of(app), "max_model_len", 0))
    )
