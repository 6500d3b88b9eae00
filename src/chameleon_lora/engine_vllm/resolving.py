"""Names that are nobody's, kept from vLLM's resolvers of adapters, and from memory.

vLLM asks its resolvers for each unknown name of a request. The one for a folder joins the name to the
folder's path as it is, an error in one ends the request with status 500, and each name asked for keeps
a lock for ever.
"""

import asyncio
import logging
import weakref
from collections.abc import Callable
from http import HTTPStatus
from typing import Any

from chameleon_lora.adapters import is_name, leads_on
from chameleon_lora.engine_vllm.openai_error import openai_error

_logger = logging.getLogger(__name__)


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


def resolving(stock: Any, shelf_of: Callable[[Any], object | None]) -> Any:
    """OpenAIServingModels.resolve_lora, for names that could be an adapter's only.

    `shelf_of` answers None for a server that does not run Chameleon's scheduler.
    """

    async def resolve_lora(models: Any, lora_name: str) -> Any:
        if shelf_of(models) is None:
            return await stock(models, lora_name)
        if models.lora_resolvers and is_name(lora_name) and not leads_on(lora_name):
            try:
                return await stock(models, lora_name)
            except Exception:  # whatever a resolver stumbles over, the name is not found
                _logger.exception("No resolver could look for the adapter %r", lora_name)
        reason = f"The model `{lora_name}` does not exist."
        return openai_error(reason, "NotFoundError", HTTPStatus.NOT_FOUND)

    return resolve_lora
