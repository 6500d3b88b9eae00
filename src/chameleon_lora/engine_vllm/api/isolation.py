"""What a tenant does not see, use or forge on vLLM's API server, whatever route it comes by.

For a tenant, vLLM's own checks run against a server that has the tenant's adapters only. So a name it may
not use gets the very answer of a name that nobody has, and nothing is looked up for it. The engine's
client checks once more.

Each change leaves calls alone for which no tenant asks (`caller.CALLER`).
"""

import copy
import inspect
from collections.abc import Iterator, Mapping
from http import HTTPStatus
from typing import Any

from chameleon_lora.engine_vllm.api.caller import (
    CALLER,
    CallerContext,
    calling_tenant,
    may_control,
    may_name,
)
from chameleon_lora.engine_vllm.errors import openai_error
from chameleon_lora.engine_vllm.messages import HINT, SHARE
from chameleon_lora.tenants import Tenant, salted

# A foretold length is a client's word; the others name caches of other servers, past the middleware's eye.
WITHHELD = (HINT, "kv_transfer_params", "ec_transfer_params")
# On vLLM's state of an answer: the CallerContext it counts for; that its prompt has been counted.
COUNTED_FOR, PROMPT_COUNTED = "chameleon_counted_for", "chameleon_prompt_counted"


class Seen:
    """An OpenAIServingModels as one tenant sees it; all else is the original's."""

    def __init__(self, models: Any, tenant: Tenant) -> None:
        self._models = models
        self._tenant = tenant
        self.lora_requests = SeenAdapters(models.lora_requests, tenant)

    def __getattr__(self, name: str) -> Any:
        """Whatever does not depend on who asks is the original's."""
        return getattr(self._models, name)

    def is_base_model(self, model_name: str) -> bool:
        """Whether the tenant knows this name as the base model's."""
        return self._tenant.base_model and bool(self._models.is_base_model(model_name))


class SeenAdapters:
    """The adapters of a server that a tenant may name: a mapping, as far as vLLM reads one."""

    def __init__(self, adapters: Mapping[str, Any], tenant: Tenant) -> None:
        self._adapters = adapters
        self._tenant = tenant

    def __contains__(self, name: object) -> bool:
        """O(patterns); what the tenant may not name is not looked up."""
        return isinstance(name, str) and self._tenant.may_name(name) and name in self._adapters

    def __getitem__(self, name: str) -> Any:
        """The LoRARequest of a name that the tenant may use; KeyError for any other."""
        if name not in self:
            raise KeyError(name)
        return self._adapters[name]

    def get(self, name: str, default: Any = None) -> Any:
        """The LoRARequest of a name that the tenant may use, or the default."""
        return self._adapters[name] if name in self else default

    def __iter__(self) -> Iterator[str]:
        """The names, in the server's order. O(adapters)."""
        return (name for name in self._adapters if self._tenant.may_name(name))

    def values(self) -> list[Any]:
        """The LoRARequests of these names. O(adapters)."""
        return [self._adapters[name] for name in self]


def seeing(stock: Any) -> Any:
    """For a method of a route's handler that takes the request: it runs on what the tenant sees."""

    def seeing(serving: Any, *args: Any, **kwargs: Any) -> Any:
        tenant = calling_tenant()
        if tenant is not None:
            serving = copy.copy(serving)
            serving.models = Seen(serving.models, tenant)
        return stock(serving, *args, **kwargs)

    return seeing


def listing(stock: Any) -> Any:
    """OpenAIServingModels.show_available_models, of what the tenant may name; no path of the server's."""

    async def show_available_models(models: Any) -> Any:
        found = await stock(models)
        tenant = calling_tenant()
        if tenant is not None:
            found.data = [card for card in found.data if _is_seen(models, tenant, card.id)]
            for card in found.data:
                card.root = card.id
                card.parent = card.parent if tenant.base_model else None
        return found

    return show_available_models


def resolving(stock: Any) -> Any:
    """vLLM's resolvers are not asked for a name that the tenant may not use."""

    async def resolve_lora(models: Any, lora_name: str) -> Any:
        return await stock(models, lora_name) if may_name(lora_name) else None

    return resolve_lora


def _is_seen(models: Any, tenant: Tenant, name: str) -> bool:
    return tenant.base_model if models.is_base_model(name) else tenant.may_name(name)


def controlled(stock: Any) -> Any:
    """For loading and unloading, also by routes that the middleware does not know."""

    async def controlled(models: Any, *args: Any, **kwargs: Any) -> Any:
        if not may_control():
            reason = "Loading and unloading adapters is for the admin: send the admin key."
            return openai_error(reason, "AuthenticationError", HTTPStatus.UNAUTHORIZED)
        return await stock(models, *args, **kwargs)

    return controlled


def signing(stock: Any) -> Any:
    """A tenant's request goes to the engine under its name, and with nothing that jumps a queue."""
    signature = inspect.signature(stock)

    async def add_request(engine: Any, *args: Any, **kwargs: Any) -> Any:
        if CALLER.get() is None:
            return await stock(engine, *args, **kwargs)
        call = signature.bind(engine, *args, **kwargs)
        given = call.arguments
        tenant = calling_tenant()
        if tenant is None:
            _unsign(given["params"])
            return await stock(*call.args, **call.kwargs)
        _require_own(tenant, given.get("lora_request"))
        given["priority"] = 0
        if given.get("session_id"):
            given["session_id"] = f"{tenant.name}:{given['session_id']}"
        _sign(given["params"], tenant)
        return await stock(*call.args, **call.kwargs)

    return add_request


def _require_own(tenant: Tenant, lora_request: Any) -> None:
    """Nothing if the tenant may use this adapter (None: the base model); else vLLM's 404."""
    from vllm.exceptions import VLLMNotFoundError

    name = None if lora_request is None else lora_request.lora_name
    if not (tenant.base_model if name is None else tenant.may_name(name)):
        raise VLLMNotFoundError("The model does not exist.")


def _sign(params: Any, tenant: Tenant) -> None:
    """Write on the request whose it is, over what a client may not write there."""
    given = getattr(params, _extra(params), None) or {}
    extra = {key: value for key, value in given.items() if key not in WITHHELD}
    extra[SHARE] = [tenant.name, tenant.weight]
    setattr(params, _extra(params), extra)


def _unsign(params: Any) -> None:
    """What the admin wrote as if it were a tenant's goes: the engine would take it at its word."""
    extra = getattr(params, _extra(params), None) or {}
    if SHARE in extra:
        kept = {key: value for key, value in extra.items() if key != SHARE}
        setattr(params, _extra(params), kept)


def _extra(params: Any) -> str:
    return "extra_args" if hasattr(params, "extra_args") else "extra_kwargs"


def salting(stock: Any) -> Any:
    """Every request passes here on its way to the engine, each of its `n` answers too."""

    def add_request(processor: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        if CALLER.get() is not None:
            request.cache_salt = salted(calling_tenant(), request.cache_salt)
        return stock(processor, request, *args, **kwargs)

    return add_request


def noting(stock: Any) -> Any:
    """OutputProcessor.add_request, from which on the answer that begins there counts for its tenant."""

    def add_request(processor: Any, request: Any, *args: Any, **kwargs: Any) -> Any:
        added = stock(processor, request, *args, **kwargs)
        caller = CALLER.get()
        state = processor.request_states.get(request.request_id)
        if caller is not None and caller.tenant is not None and not hasattr(state, COUNTED_FOR):
            setattr(state, COUNTED_FOR, caller)
            caller.unfinished += 1
        return added

    return add_request


def counting(stock: Any) -> Any:
    """RequestState.make_request_output, to which vLLM brings all that the engine has done for an answer.

    So it counts whether somebody reads the answer or not: streamed or whole, one of `n`, or a beam's.
    """

    def make_request_output(
        state: Any,
        new_token_ids: Any,
        pooling_output: Any,
        finish_reason: Any,
        *args: Any,
        **kw: Any,
    ) -> Any:
        caller = getattr(state, COUNTED_FOR, None)
        if caller is not None:
            _count(state, caller, len(new_token_ids), getattr(finish_reason, "name", None))
        return stock(state, new_token_ids, pooling_output, finish_reason, *args, **kw)

    return make_request_output


def _count(state: Any, caller: CallerContext, tokens: int, finish: str | None) -> None:
    """The prompt counts once, for the first of its answers, when it has been read."""
    caller.output_tokens += tokens
    caller.unfinished -= finish not in (None, "ABORT")
    is_read = tokens > 0 or finish not in (None, "ABORT", "ERROR")
    if is_read and not state.request_index and not hasattr(state, PROMPT_COUNTED):
        setattr(state, PROMPT_COUNTED, True)
        caller.input_tokens += state.prompt_len
