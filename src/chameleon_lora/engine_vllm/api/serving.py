"""What vLLM's API server does for adapters: they are offered without a load, and reasons reach clients.

Each function is a hook of `hook_table`. It asks first whether this server runs Chameleon's scheduler,
and leaves it vLLM's otherwise.
"""

import bisect
import difflib
import logging
from contextvars import ContextVar
from http import HTTPStatus
from pathlib import Path
from typing import Any

from chameleon_lora.adapters import AdapterFolder, AdapterInfo, is_name, leads_on
from chameleon_lora.adapters.folder import MAX_NAME_BYTES
from chameleon_lora.engine_vllm.api import auth, routes, shutdown
from chameleon_lora.engine_vllm.api.caller import calling_tenant, may_name
from chameleon_lora.engine_vllm.api.registry import (
    REGISTRY,
    AdapterRegistry,
    NameLocks,
    registry_of,
    require_name,
)
from chameleon_lora.engine_vllm.config import (
    CONFIG_KEY,
    is_chameleon_scheduler,
    is_ours,
    settings_of,
)
from chameleon_lora.engine_vllm.errors import client_error, failure_reason, openai_error
from chameleon_lora.engine_vllm.hooks import require_hooks
from chameleon_lora.errors import AdapterError, AdapterNotFoundError
from chameleon_lora.settings import parse_settings

_CHECKED: ContextVar[AdapterInfo | None] = ContextVar("chameleon_checked", default=None)
"""What a load by request has been found to load; add_lora is called inside of it."""
TROUBLE = "chameleon_trouble"  # on the models: the kind of error that their resolvers had last
MOST_COMPARED = 100  # on either side of a name's place among the adapters': it takes milliseconds
_logger = logging.getLogger(f"vllm.{__name__}")


def with_registry(stock: Any) -> Any:
    """OpenAIServingModels.__init__ that gives the models, and their engine's client, a registry."""

    def init(models: Any, *args: Any, **kwargs: Any) -> None:
        stock(models, *args, **kwargs)
        config: Any = getattr(models.engine_client, "vllm_config", None)
        if not is_ours(config):
            return
        serving = settings_of(config).serving
        folder = AdapterFolder(Path(serving.adapters).absolute()) if serving.adapters else None
        if config.lora_config is not None:
            registry = AdapterRegistry(models, folder, serving.scan_s)
            models.lora_resolver_lock = NameLocks()
            setattr(models, REGISTRY, registry)
            setattr(models.engine_client, REGISTRY, registry)

    return init


def starting(stock: Any) -> Any:
    """OpenAIServingModels.init_static_loras, after which the folder is offered and followed."""

    async def init_static_loras(models: Any) -> None:
        await stock(models)
        registry = registry_of(models)
        if registry is not None:
            await registry.start()

    return init_static_loras


def checking(stock: Any) -> Any:
    """OpenAIServingModels.load_lora_adapter that says what is wrong with an adapter it refuses."""

    async def load_lora_adapter(models: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        registry = registry_of(models)
        if registry is None or not request.lora_path:
            return await stock(models, request, *args, **kwargs)
        try:
            require_name(request.lora_name)
            info = await registry.check(request.lora_path, request.lora_name)
        except AdapterNotFoundError as error:
            return openai_error(str(error), "NotFoundError", HTTPStatus.NOT_FOUND)
        except AdapterError as error:
            return openai_error(str(error), "BadRequestError", HTTPStatus.BAD_REQUEST)
        token = _CHECKED.set(info)
        try:
            return await stock(models, request, *args, **kwargs)
        finally:
            _CHECKED.reset(token)

    return load_lora_adapter


def publishing(stock: Any) -> Any:
    """AsyncLLM.add_lora that announces the adapter; it is loaded for the first request."""

    async def add_lora(engine: Any, lora_request: Any) -> bool:
        registry = registry_of(engine)
        if registry is None:
            return bool(await stock(engine, lora_request))
        name, path = lora_request.lora_name, lora_request.lora_path
        info = _CHECKED.get() or await registry.check(path, name)
        is_3d = bool(getattr(lora_request, "is_3d_lora_weight", False))
        await registry.publish(name, path, info, is_3d=is_3d)
        return True

    return add_lora


def withdrawing(stock: Any) -> Any:
    """OpenAIServingModels.unload_lora_adapter that tells the engine too."""

    async def unload_lora_adapter(models: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        registry = registry_of(models)
        answer = await stock(models, request, *args, **kwargs)
        if registry is not None and request.lora_name not in models.lora_requests:
            await registry.withdraw(request.lora_name)
        return answer

    return unload_lora_adapter


def resolving(stock: Any) -> Any:
    """OpenAIServingModels.resolve_lora, for names that could be an adapter's only."""

    async def resolve_lora(models: Any, lora_name: str) -> Any:
        if registry_of(models) is None:
            return await stock(models, lora_name)
        if models.lora_resolvers and is_name(lora_name) and not leads_on(lora_name):
            try:
                return await stock(models, lora_name)
            except Exception as error:  # whatever a resolver stumbles over, the name is not found
                if getattr(models, TROUBLE, None) is not type(error):  # clients may ask without end
                    setattr(models, TROUBLE, type(error))
                    _logger.exception("No resolver could look for the adapter %r", lora_name)
        reason = f"The model `{lora_name}` does not exist."
        return openai_error(reason, "NotFoundError", HTTPStatus.NOT_FOUND)

    return resolve_lora


def explaining(stock: Any) -> Any:
    """BaseServing._check_model that finds a folder which has just come, and says why none is served."""

    async def check_model(serving: Any, request: Any) -> Any:
        if shutdown.is_shutting_down(getattr(serving.models, "engine_client", None)):
            status = HTTPStatus.SERVICE_UNAVAILABLE
            return openai_error(shutdown.SHUTDOWN_WORDS, "ServiceUnavailableError", status)
        registry = registry_of(serving.models)
        if registry is not None and isinstance(request.model, str) and may_name(request.model):
            await registry.refresh(request.model)
            reason = registry.refused.get(request.model)
            if reason is not None:
                return openai_error(reason, "BadRequestError", HTTPStatus.BAD_REQUEST)
        answer = await stock(serving, request)
        if answer is not None and answer.error.code == HTTPStatus.NOT_FOUND:
            answer.error.message = unknown_model(
                serving.models, request.model, answer.error.message
            )
        return answer

    return check_model


def unknown_model(models: Any, name: str, stock: str) -> str:
    """What whoever asked for a model that is not there is told, where vLLM has `stock` words for all.

    They name the base model, which a tenant may not know; and no adapter, of which there may be many.
    """
    tenant = calling_tenant()
    if tenant is not None:
        return stock if tenant.base_model else f"The model `{name}` does not exist."
    adapters = sorted(models.lora_requests)
    if not adapters:
        return stock
    place = bisect.bisect(adapters, name)
    around = adapters[max(0, place - MOST_COMPARED) : place + MOST_COMPARED]
    nearest = difflib.get_close_matches(name[:MAX_NAME_BYTES], around, n=1)
    hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
    return f"{stock} {len(adapters)} adapters are served too: GET /v1/models lists them.{hint}"


def raising(stock: Any) -> Any:
    """OutputProcessor.process_outputs that hands a failed request's reason to who waits for it."""

    def process_outputs(processor: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        failed = [(o.request_id, reason) for o in outputs if (reason := failure_reason(o))]
        waiting = [(processor.request_states.get(i), reason) for i, reason in failed]
        processed = stock(processor, outputs, *args, **kwargs)
        for state, reason in waiting:
            if state is not None and state.queue is not None:
                state.queue.put(client_error(reason))  # takes the place of the bare error
        return processed

    return process_outputs


def with_routes(stock: Any) -> Any:
    """register_vllm_serve_api_routers that adds Chameleon's routes, and asks for keys.

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
            can_change = bool(envs.VLLM_ALLOW_RUNTIME_LORA_UPDATING)
            routes.attach(app, can_change=can_change)
            auth.guard(app, args, serving, can_change=can_change)

    return register_vllm_serve_api_routers
