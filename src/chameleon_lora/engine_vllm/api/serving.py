"""What vLLM's API server does for adapters: they are offered without a load, and reasons reach clients.

Each function is a hook of `hook_table`. It asks first whether this server runs Chameleon's scheduler,
and leaves it vLLM's otherwise.
"""

import asyncio
import bisect
import difflib
import logging
import weakref
from contextvars import ContextVar
from dataclasses import dataclass
from http import HTTPStatus
from pathlib import Path
from typing import Any

from chameleon_lora.adapters import (
    AdapterFolder,
    AdapterInfo,
    is_name,
    leads_on,
    require_name,
)
from chameleon_lora.adapters.folder import MAX_NAME_BYTES
from chameleon_lora.engine_vllm.api import shutdown
from chameleon_lora.engine_vllm.api.caller import calling_tenant, may_name
from chameleon_lora.engine_vllm.api.registry import (
    REGISTRY,
    AdapterRegistry,
    registry_of,
)
from chameleon_lora.engine_vllm.config import is_ours, settings_of
from chameleon_lora.engine_vllm.errors import (
    STATUS,
    client_error,
    failure_in,
    http_error,
    openai_error,
    refusal_of,
)
from chameleon_lora.errors import AdapterError, AdapterRequestsError, AdapterUnreadableError
from chameleon_lora.policy.plan import Fault


@dataclass(slots=True)
class _Load:
    """A load under way, by a request for it or by a resolver of vLLM's.

    Attributes:
        info: what the request has been found to load; None for a resolver.
        refusal: what whoever asked is to be told, once that is known.
    """

    info: AdapterInfo | None = None
    refusal: Any = None


_LOAD: ContextVar[_Load | None] = ContextVar(
    "chameleon_load", default=None
)  # add_lora is called inside
MOST_REASONS = 5  # of different ones, in the message of one error
MOST_COMPARED = 20  # on either side of a name's place among the adapters': it takes milliseconds
_logger = logging.getLogger(f"vllm.{__name__}")


class NameLocks:
    """A lock for each name, which lives while somebody uses it. Its length is how many do."""

    def __init__(self) -> None:
        self._locks: weakref.WeakValueDictionary[str, asyncio.Lock] = weakref.WeakValueDictionary()

    def __getitem__(self, name: str) -> asyncio.Lock:
        lock = self._locks.get(name)
        if lock is None:
            lock = self._locks[name] = asyncio.Lock()
        return lock

    def __len__(self) -> int:
        return len(self._locks)


def with_registry(stock: Any) -> Any:
    """OpenAIServingModels.__init__ that gives the models, and their engine's client, a registry."""

    def init(models: Any, *args: Any, **kwargs: Any) -> None:
        stock(models, *args, **kwargs)
        config: Any = getattr(models.engine_client, "vllm_config", None)
        if not is_ours(config):
            return
        serving = settings_of(config).serving
        root = Path(serving.adapters).absolute() if serving.adapters else None
        trusted, may = serving.trusted_roots, serving.converts_bin
        folder = AdapterFolder(root, trusted, converts_bin=may) if root else None
        if config.lora_config is not None:
            registry = AdapterRegistry(models, folder, serving.scan_s, serving.scan_all_s)
            models.lora_resolver_lock = NameLocks()
            setattr(models, REGISTRY, registry)
            setattr(models.engine_client, REGISTRY, registry)
            setattr(models.engine_client.output_processor, REGISTRY, registry)

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
        except AdapterError as error:
            return refusal_of(error)
        return await _telling(_Load(info), stock(models, request, *args, **kwargs))

    return load_lora_adapter


async def _telling(load: _Load, work: Any) -> Any:
    """What the work answers, with the load's own refusal in place of vLLM's words for it."""
    token = _LOAD.set(load)
    try:
        answer = await work
        return load.refusal if load.refusal and hasattr(answer, "error") else answer
    finally:
        _LOAD.reset(token)


def publishing(stock: Any) -> Any:
    """AsyncLLM.add_lora that announces the adapter; it is loaded at a request to load it, or for the first."""

    async def add_lora(engine: Any, lora_request: Any) -> bool:
        registry = registry_of(engine)
        if registry is None:
            return bool(await stock(engine, lora_request))
        name, path = lora_request.lora_name, lora_request.lora_path
        load = _LOAD.get() or _Load()
        is_3d = bool(getattr(lora_request, "is_3d_lora_weight", False))
        try:
            info = load.info or await registry.check(path, name)
            await registry.publish(name, path, info, is_3d=is_3d, is_tried=load.info is not None)
        except AdapterError as error:
            load.refusal = refusal_of(error)
            raise
        return bool(await stock(engine, lora_request))  # by that id, too

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
        registry = registry_of(models)
        if registry is None:
            return await stock(models, lora_name)
        if models.lora_resolvers and is_name(lora_name) and not leads_on(lora_name):
            try:
                return await _telling(_Load(), stock(models, lora_name))
            except Exception as error:  # whatever a resolver stumbles over, the name is not found
                if registry.resolvers_trouble.note(type(error)):  # clients may ask without end
                    _logger.exception("No resolver could look for the adapter %r", lora_name)
        reason = f"The model `{lora_name}` does not exist."
        return openai_error(reason, "NotFoundError", HTTPStatus.NOT_FOUND)

    return resolve_lora


def explaining(stock: Any) -> Any:
    """BaseServing._check_model that finds a folder which has just come, and says why none is served."""

    async def check_model(serving: Any, request: Any) -> Any:
        refusal = await _refusal(serving, request)
        if refusal is not None:
            return refusal
        answer = await stock(serving, request)
        if answer is not None and answer.error.code == HTTPStatus.NOT_FOUND:
            answer.error.message = unknown_model(
                serving.models, request.model, answer.error.message
            )
        return answer

    return check_model


def explaining_by_raising(stock: Any) -> Any:
    """PoolingBaseServing._check_model that does the same, but raises: no heed is taken of its answer."""

    async def check_model(serving: Any, request: Any) -> Any:
        refusal = await _refusal(serving, request)
        if refusal is not None:
            raise http_error(refusal.error.message, HTTPStatus(refusal.error.code))
        answer = await stock(serving, request)
        try:
            serving._maybe_get_adapters(request)
        except Exception as error:  # whatever this vLLM has for a model that is not there
            message = unknown_model(serving.models, request.model, str(error))
            raise type(error)(message) from error
        return answer

    return check_model


async def _refusal(serving: Any, request: Any) -> Any | None:
    """The error that a request's client gets before anything is done for it, or None."""
    if shutdown.is_shutting_down(getattr(serving.models, "engine_client", None)):
        status = HTTPStatus.SERVICE_UNAVAILABLE
        return openai_error(shutdown.SHUTDOWN_WORDS, "ServiceUnavailableError", status)
    registry = registry_of(serving.models)
    if registry is not None and isinstance(request.model, str) and may_name(request.model):
        try:
            await registry.refresh(request.model)
        except AdapterUnreadableError as error:
            return refusal_of(error)
        reason = registry.refusals.why(request.model)
        if reason is not None:
            return openai_error(reason, "BadRequestError", HTTPStatus.BAD_REQUEST)
    return None


def unknown_model(models: Any, name: str, stock: str) -> str:
    """What whoever asked for a model that is not there is told, where vLLM has `stock` words for all.

    They name the base model, which a tenant may not know; and no adapter, of which there may be many.
    """
    tenant = calling_tenant()
    if tenant is not None:
        return stock if tenant.base_model else f"The model `{name}` does not exist."
    registry = registry_of(models)
    failed = {} if registry is None else registry.refusals.failed
    adapters = sorted(models.lora_requests.keys() - failed.keys())
    if not adapters:
        return stock
    place = bisect.bisect(adapters, name)
    around = adapters[max(0, place - MOST_COMPARED) : place + MOST_COMPARED]
    nearest = difflib.get_close_matches(name[:MAX_NAME_BYTES], around, n=1)
    hint = f" Did you mean `{nearest[0]}`?" if nearest else ""
    return f"{stock} {len(adapters)} adapters are served too: GET /v1/models lists them.{hint}"


def raising(stock: Any) -> Any:
    """OutputProcessor.process_outputs that hands a failed request's reason to who waits for it.

    Where nobody waits, as for vLLM's LLM class, the output says it in `error_message`.
    """

    def process_outputs(processor: Any, outputs: Any, *args: Any, **kwargs: Any) -> Any:
        states = processor.request_states
        told = [(o, failure) for o in outputs if (failure := failure_in(o))]
        failed = [(states[o.request_id], o, why) for o, why in told if o.request_id in states]
        for state, output, _ in failed:
            _make_readable(state, output)
        processed = stock(processor, outputs, *args, **kwargs)
        for state, _, (reason, fault) in failed:
            if state.queue is None:
                _write_on(processed.request_outputs, state.external_req_id, reason)
                continue
            is_pooling = state.detokenizer is None  # takes the place of the bare error
            state.queue.put(client_error(reason, STATUS[fault], is_pooling=is_pooling))
            registry = registry_of(processor)
            if registry is not None and fault is Fault.CONTENT:
                registry.refusals.found_unfit(state.lora_request, reason)
            if registry is not None and fault is Fault.FILES:
                registry.found_changed(state.lora_request)
        return processed

    return process_outputs


def _make_readable(state: Any, output: Any) -> None:
    """vLLM takes an output without a tensor for text, and fails as a whole if it was to be pooled."""
    from vllm.v1.engine.output_processor import EMPTY_CPU_TENSOR

    if state.detokenizer is None:
        output.pooling_output = EMPTY_CPU_TENSOR


def _write_on(outputs: list[Any], request_id: str, reason: str) -> None:
    """vLLM 0.32 has a field for it in pooled outputs, and makes no numbers of one that has it."""
    for output in outputs:
        if output.request_id != request_id:
            continue
        output.error_message = reason
        if hasattr(output, "error"):
            from vllm.outputs import RequestError

            output.error = RequestError("adapter_not_loaded", reason, retryable=False)


def raising_at_the_end(stock: Any) -> Any:
    """A method of LLM that runs requests to their ends and answers their outputs.

    Raises:
        AdapterRequestsError: when it is called, once all have ended, if one has no answer.
    """

    def run(llm: Any, *args: Any, **kwargs: Any) -> Any:
        outputs = stock(llm, *args, **kwargs)
        failed = [output.error_message for output in outputs if hasattr(output, "error_message")]
        if failed:
            words = f"{len(failed)} of {len(outputs)} requests have no answer (`outputs` has all)"
            reasons = list(dict.fromkeys(failed))[:MOST_REASONS]
            raise AdapterRequestsError(f"{words}: {' | '.join(reasons)}", outputs)
        return outputs

    return run
