"""GET /v1/models with thousands of adapters: vLLM's own cards, each made once and kept as JSON.

vLLM makes all of them anew for each answer, and every other answer of the server waits meanwhile: 0.4 s
for 10,000 adapters.
"""

import asyncio
from collections.abc import AsyncIterator, Mapping
from typing import Any

from chameleon_lora.engine_vllm.api.caller import calling_tenant
from chameleon_lora.engine_vllm.api.registry import registry_of

AT_ONCE = 100  # cards made, or ten times as many names compared, before others have their turn


class ModelCards:
    """The cards of one server's models, as JSON. Owner: the route.

    Invariant: of what is offered no more it keeps nothing beyond the next answer.
    """

    def __init__(self) -> None:
        # By all that a card depends on beside the adapter: is it a tenant's, and does that know the base?
        self._forms: dict[tuple[bool, bool], dict[str, tuple[Any, bytes]]] = {}
        self._making = asyncio.Lock()

    async def page(self, models: Any) -> bytes:
        """The base models, and the adapters that whoever asks may name, as vLLM lists them.

        Without those for which no request is let in.
        """
        tenant, registry = calling_tenant(), registry_of(models)
        failed = {} if registry is None else registry.refusals.failed
        names = [name for name in models.lora_requests if name not in failed]
        if tenant is not None:
            parts = _parts(names, 10 * AT_ONCE)
            names = [name async for part in parts for name in filter(tenant.may_name, part)]
        cards = self._forms.setdefault((tenant is None, bool(tenant and tenant.base_model)), {})
        async with self._making:  # so that many who ask at once make no card twice
            base = await _made(models, {})
            offered = models.lora_requests
            stale = [name for name in names if cards.get(name, ("",))[0] is not offered.get(name)]
            async for part in _parts(stale, AT_ONCE):
                some = {name: offered[name] for name in part if name in offered}
                made = (await _made(models, some))[len(base) :]
                kept = zip(some.values(), made, strict=True)
                cards |= dict(zip(some, kept, strict=True))
            for name in cards.keys() - offered.keys():
                del cards[name]
        pieces = base + [cards[name][1] for name in names if name in cards]
        return b'{"object":"list","data":[' + b",".join(pieces) + b"]}"


class _Some:
    """An OpenAIServingModels that offers some adapters only; all else is the original's."""

    def __init__(self, models: Any, lora_requests: Mapping[str, Any]) -> None:
        self._models = models
        self.lora_requests = lora_requests

    def __getattr__(self, name: str) -> Any:
        return getattr(self._models, name)


async def _made(models: Any, lora_requests: Mapping[str, Any]) -> list[bytes]:
    """The cards that vLLM makes of the base models, if they may be known, and of these adapters."""
    found = await type(models).show_available_models(_Some(models, lora_requests))
    return [card.model_dump_json().encode() for card in found.data]


async def _parts(names: list[str], count: int) -> AsyncIterator[list[str]]:
    """The names, so many at a time; between two of them others have their turn."""
    for begin in range(0, len(names), count):
        yield names[begin : begin + count]
        await asyncio.sleep(0)
