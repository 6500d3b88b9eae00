"""What the API server does beyond vLLM's: adapters are offered without a load, and reasons arrive.

It also has the routes of `control_api`.

Each change asks first whether this server runs Chameleon's scheduler, and is vLLM's own otherwise.
"""

import functools
from http import HTTPStatus
from pathlib import Path
from typing import Any

from chameleon_lora.adapters import AdapterFolder
from chameleon_lora.engine_vllm.api import auth, lora_gauge, routes, shutdown
from chameleon_lora.engine_vllm.api.caller import may_name
from chameleon_lora.engine_vllm.api.registry import (
    AdapterRegistry,
    NameLocks,
    require_name,
    resolving,
)
from chameleon_lora.engine_vllm.config import is_chameleon_scheduler, settings_of
from chameleon_lora.engine_vllm.errors import client_error, failure_reason, openai_error
from chameleon_lora.errors import AdapterError, AdapterNotFoundError

SHELF = "chameleon_shelf"


def install() -> None:
    """Afterwards API servers of a Chameleon engine behave so. Idempotent."""
    from vllm.entrypoints import serve
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels
    from vllm.entrypoints.serve.engine.serving import BaseServing
    from vllm.v1.engine.async_llm import AsyncLLM
    from vllm.v1.engine.output_processor import OutputProcessor
    from vllm.v1.metrics.loggers import PrometheusStatLogger

    if hasattr(OpenAIServingModels, SHELF):
        return
    setattr(OpenAIServingModels, SHELF, None)
    for owner, method, change in (
        (OpenAIServingModels, "__init__", _with_shelf),
        (OpenAIServingModels, "init_static_loras", _opening),
        (OpenAIServingModels, "load_lora_adapter", _checking),
        (OpenAIServingModels, "unload_lora_adapter", _withdrawing),
        (OpenAIServingModels, "resolve_lora", functools.partial(resolving, shelf_of=_shelf_of)),
        (BaseServing, "_check_model", _explaining),
        (AsyncLLM, "add_lora", _offering),
        (AsyncLLM, "shutdown", shutdown.ending),
        (AsyncLLM, "check_health", shutdown.checking_health),
        (PrometheusStatLogger, "record", lora_gauge.bounding),
        (OutputProcessor, "process_outputs", _raising),
        (serve, "register_vllm_serve_api_routers", _controlling),
    ):
        stock = getattr(owner, method)
        setattr(owner, method, functools.wraps(stock)(change(stock)))


def _with_shelf(stock: Any) -> Any:
    def init(models: Any, *args: Any, **kwargs: Any) -> None:
        stock(models, *args, **kwargs)
        config = getattr(models.engine_client, "vllm_config", None)
        if config is None or not is_chameleon_scheduler(config.scheduler_config.scheduler_cls):
            return
        serving = settings_of(config).serving
        folder = AdapterFolder(Path(serving.adapters).absolute()) if serving.adapters else None
        if config.lora_config is not None:
            shelf = AdapterRegistry(models, folder, serving.scan_s)
            models.lora_resolver_lock = NameLocks()
            setattr(models, SHELF, shelf)
            setattr(models.engine_client, SHELF, shelf)

    return init


def _opening(stock: Any) -> Any:
    async def init_static_loras(models: Any) -> None:
        await stock(models)
        shelf = getattr(models, SHELF)
        if shelf is not None:
            await shelf.open()

    return init_static_loras


def _checking(stock: Any) -> Any:
    async def load_lora_adapter(models: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        shelf = getattr(models, SHELF)
        if shelf is not None and request.lora_path:
            try:
                require_name(request.lora_name)
                await shelf.check(request.lora_path)
            except AdapterNotFoundError as error:
                return openai_error(str(error), "NotFoundError", HTTPStatus.NOT_FOUND)
            except AdapterError as error:
                return openai_error(str(error), "BadRequestError", HTTPStatus.BAD_REQUEST)
        return await stock(models, request, *args, **kwargs)

    return load_lora_adapter


def _withdrawing(stock: Any) -> Any:
    async def unload_lora_adapter(models: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        shelf = getattr(models, SHELF)
        answer = await stock(models, request, *args, **kwargs)
        if shelf is not None and request.lora_name not in models.lora_requests:
            await shelf.remove(request.lora_name)
        return answer

    return unload_lora_adapter


def _explaining(stock: Any) -> Any:
    async def check_model(serving: Any, request: Any) -> Any:
        shelf = getattr(serving.models, SHELF, None)
        if shutdown.is_leaving(getattr(serving.models, "engine_client", None)):
            status = HTTPStatus.SERVICE_UNAVAILABLE
            return openai_error(shutdown.LEAVING_WORDS, "ServiceUnavailableError", status)
        if shelf is not None and isinstance(request.model, str) and may_name(request.model):
            await shelf.look(request.model)
            reason = shelf.refused.get(request.model)
            if reason is not None:
                return openai_error(reason, "BadRequestError", HTTPStatus.BAD_REQUEST)
        return await stock(serving, request)

    return check_model


def _offering(stock: Any) -> Any:
    async def add_lora(engine: Any, lora_request: Any) -> bool:
        shelf = getattr(engine, SHELF, None)
        if shelf is None:
            return bool(await stock(engine, lora_request))
        info = await shelf.check(lora_request.lora_path)
        is_3d = bool(getattr(lora_request, "is_3d_lora_weight", False))
        await shelf.offer(lora_request.lora_name, lora_request.lora_path, info, is_3d=is_3d)
        return True

    return add_lora


def _raising(stock: Any) -> Any:
    def process_outputs(processor: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        failed = [(o.request_id, reason) for o in outputs if (reason := failure_reason(o))]
        waiting = [(processor.request_states.get(i), reason) for i, reason in failed]
        processed = stock(processor, outputs, *args, **kwargs)
        for state, reason in waiting:
            if state is not None and state.queue is not None:
                state.queue.put(client_error(reason))  # takes the place of the bare error
        return processed

    return process_outputs


def _controlling(stock: Any) -> Any:
    """In place of build_app, which some of vLLM's commands keep in a module of another name."""

    def register_vllm_serve_api_routers(app: Any) -> None:
        from vllm import envs

        stock(app)
        args = getattr(app.state, "args", None)
        if is_chameleon_scheduler(getattr(args, "scheduler_cls", None)):
            can_change = bool(envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING)
            routes.attach(app, _shelf_of, can_change=can_change)
            auth.guard(app, args, can_change=can_change)

    return register_vllm_serve_api_routers


def _shelf_of(models: Any) -> AdapterRegistry | None:
    shelf: AdapterRegistry | None = getattr(models, SHELF)
    return shelf
