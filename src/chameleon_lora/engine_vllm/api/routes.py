"""Chameleon's routes on vLLM's own server.

| route | guarded by --api-key | there |
| --- | --- | --- |
| GET /chameleon/state | no, as /metrics | always |
| GET /chameleon/arrivals?after=N | no | always |
| GET /v1/models, in place of vLLM's | yes | always |
| POST /v1/pin_lora_adapter | yes, as all of /v1 | with VLLM_ALLOW_RUNTIME_LORA_UPDATING |
| POST /v1/unpin_lora_adapter | yes | the same |

State and arrivals name adapters and request ids, no prompts; who must not see it is kept off by whatever
keeps them off /metrics.
"""

import asyncio
import itertools
import logging
from collections.abc import Awaitable, Callable
from http import HTTPStatus
from typing import Annotated, Any

from fastapi import APIRouter, Depends, FastAPI, HTTPException, Query
from fastapi.responses import JSONResponse, Response
from fastapi.routing import APIRoute
from pydantic import BaseModel

from chameleon_lora.adapters.untrusted import quoted
from chameleon_lora.engine_vllm.api import auth, body, heads, shutdown, unread
from chameleon_lora.engine_vllm.api.caller import may_control
from chameleon_lora.engine_vllm.api.listing import ModelCards
from chameleon_lora.engine_vllm.api.metrics import MetricsPage
from chameleon_lora.engine_vllm.api.registry import registry_of
from chameleon_lora.engine_vllm.config import CONFIG_KEY, is_chameleon_scheduler
from chameleon_lora.engine_vllm.errors import leave_out_of_log, refusal_of
from chameleon_lora.engine_vllm.hooks import require_hooks
from chameleon_lora.engine_vllm.log_limit import limit_log_records
from chameleon_lora.engine_vllm.messages import ARRIVALS, METRICS, PIN, STATE
from chameleon_lora.errors import AdapterUnreadableError
from chameleon_lora.settings import parse_settings

STATE_PATH = "/chameleon/state"
ARRIVALS_PATH = "/chameleon/arrivals"
LISTING_PATH = "/v1/models"
LIMIT_S = 10.0  # for the engine to answer
MOST_REFUSED = 1000
MAX_ARRIVAL = (1 << 63) - 1  # what can be sent to the engine
_logger = logging.getLogger(f"vllm.{__name__}")


class AdapterNameBody(BaseModel):
    """The body of a request to pin or unpin."""

    lora_name: str


def with_routes(stock: Any) -> Any:
    """register_vllm_serve_api_routers that adds Chameleon's routes, asks for keys, and limits bodies.

    In place of build_app, which some of vLLM's commands keep in a module of another name.

    Raises:
        UnsupportedEngineError: when it is called, if a hook that this server needs is not in place.
        ConfigError: the keys or the tenants' file cannot be used.
    """

    def register_vllm_serve_api_routers(app: Any) -> None:
        from vllm import envs

        stock(app)
        args = getattr(app.state, "args", None)
        if is_chameleon_scheduler(getattr(args, "scheduler_cls", None)):
            given = getattr(args, "additional_config", None) or {}
            serving = parse_settings(given.get(CONFIG_KEY, {})).serving
            require_hooks(serving)
            if not getattr(args, "log_error_stack", False):
                leave_out_of_log()
            setattr(app.state, shutdown.LIMIT, getattr(args, "shutdown_timeout", None) or 0.0)
            setattr(app.state, unread.LIMIT, serving.send_timeout_s)
            setattr(app.state, heads.LIMIT, heads.HEAD_S)
            can_change = bool(envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING)
            attach(app, can_change=can_change)
            auth.guard(app, args, serving, can_change=can_change)
            body.limit(app, serving)
            limit_log_records()

    return register_vllm_serve_api_routers


def attach(app: FastAPI, *, can_change: bool) -> None:
    """Afterwards the app has the routes, and Chameleon's families on its metrics page.

    With `can_change` clients may pin.
    """
    router = APIRouter(dependencies=[Depends(_require_admin)])

    @router.get(STATE_PATH)
    async def state() -> Response:
        """Lanes, tiers and adapters as they stand between two steps."""
        return await _answer(_state(app))

    @router.get(ARRIVALS_PATH)
    async def arrivals(after: Annotated[int, Query(ge=0, le=MAX_ARRIVAL)] = 0) -> Response:
        """Where the adapters of requests were when these arrived, of those after a number."""
        return await _answer(_ask(app, ARRIVALS, after))

    if can_change:

        @router.post("/v1/pin_lora_adapter")
        async def pin_lora_adapter(body: AdapterNameBody) -> Response:
            """Keep an adapter in host memory from now on."""
            return await _answer(_pin(app, body.lora_name, is_pinned=True))

        @router.post("/v1/unpin_lora_adapter")
        async def unpin_lora_adapter(body: AdapterNameBody) -> Response:
            """Let an adapter be evicted again."""
            return await _answer(_pin(app, body.lora_name, is_pinned=False))

    app.include_router(router)
    app.router.routes.insert(0, APIRoute(LISTING_PATH, _listing(app)))  # before vLLM's own
    app.add_middleware(MetricsPage, ask=lambda: _numbers(app))


def _listing(app: FastAPI) -> Callable[[], Awaitable[Response]]:
    cards = ModelCards()

    async def show_available_models() -> Response:
        page = await cards.page(app.state.openai_serving_models)
        return Response(page, media_type="application/json")

    return show_available_models


async def _require_admin() -> None:
    """Nothing if whoever asks may control; `auth` lets no other come so far."""
    if not may_control():
        raise HTTPException(HTTPStatus.UNAUTHORIZED, "This is for the admin: send the admin key.")


async def _ask(app: FastAPI, utility: str, *arguments: Any) -> Any:
    """What the engine answers; with several engines, the first."""
    return await app.state.engine_client.engine_core.call_utility_async(utility, *arguments)


async def _state(app: FastAPI) -> Any:
    """What the engine knows, and which adapters are not served: at most MOST_REFUSED."""
    state = await _ask(app, STATE)
    told = itertools.islice(_not_served(app).items(), MOST_REFUSED)
    refused = [{"name": name, "reason": reason} for name, reason in told]
    return None if state is None else {**state, "refused": refused}


async def _numbers(app: FastAPI) -> Any:
    """What the engine counts, and how many adapters are not served."""
    numbers = await _ask(app, METRICS)
    return None if numbers is None else {**numbers, "refused": len(_not_served(app))}


def _not_served(app: FastAPI) -> dict[str, str]:
    registry = registry_of(getattr(app.state, "openai_serving_models", None))
    return {} if registry is None else registry.refusals.all


async def _pin(app: FastAPI, name: str, *, is_pinned: bool) -> Response:
    word, done = ("pin", "pinned") if is_pinned else ("unpin", "unpinned")
    if not name:
        reason = f"'lora_name' needs to be provided to {word} a LoRA adapter."
        return _error(reason, "InvalidUserInput", HTTPStatus.BAD_REQUEST)
    models = app.state.openai_serving_models
    registry = registry_of(models)
    if registry is not None:
        await registry.refresh(name)
        if why := registry.refusals.why(name):
            return _error(why, "BadRequestError", HTTPStatus.BAD_REQUEST)
    if name not in models.lora_requests:
        reason = f"The lora adapter {quoted(name)} cannot be found."
        return _error(reason, "NotFoundError", HTTPStatus.NOT_FOUND)
    reason = await _ask(app, PIN, name, is_pinned)
    if reason is not None:
        return _error(reason, "BadRequestError", HTTPStatus.BAD_REQUEST)
    _logger.info("LoRA adapter %s: name '%s'", done, name)
    return Response(f"Success: LoRA adapter '{name}' {done} successfully.")


async def _answer(work: Any) -> Response:
    """What the work answers, or that the engine is busy for too long, or an adapter's disk fails."""
    try:
        answer = await asyncio.wait_for(work, LIMIT_S)
    except TimeoutError:
        reason = f"The engine has not answered for {LIMIT_S:.0f} s; ask again later."
        return _error(reason, "ServiceUnavailableError", HTTPStatus.SERVICE_UNAVAILABLE)
    except AdapterUnreadableError as error:
        told = refusal_of(error).error
        return _error(told.message, told.type, HTTPStatus(told.code))
    return answer if isinstance(answer, Response) else JSONResponse(answer)


def _error(message: str, kind: str, status: HTTPStatus) -> Response:
    """OpenAI's form, as vLLM writes it."""
    error = {"message": message, "type": kind, "param": None, "code": status.value}
    return JSONResponse({"error": error}, status)
