"""GET /v1/models: vLLM's own list, whose cards are made once and a part at a time."""

import asyncio
import json
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.api import routes
from chameleon_lora.engine_vllm.api.listing import AT_ONCE, ModelCards
from chameleon_lora.engine_vllm.api.registry import REGISTRY
from chameleon_lora.tenants import Tenant
from tests.engine_vllm.asgi_client import ask
from tests.engine_vllm.callers import ACME, BOB, called_by, run

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@pytest.fixture
def models(hooked: None) -> Any:  # noqa: ARG001
    """vLLM's OpenAIServingModels over adapters acme-1 and bob-1, without an engine."""
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIModelRegistry, OpenAIServingModels

    models = object.__new__(OpenAIServingModels)
    models.model_config = SimpleNamespace(model="m", max_model_len=64)
    models.base_model_paths = [BaseModelPath(name="base", model_path="/m")]
    models.registry = OpenAIModelRegistry(models.model_config, models.base_model_paths)
    models.lora_requests = {}
    offer(models, "acme-1", "bob-1")
    return models


def offer(models: Any, *names: str, below: str = "") -> None:
    """Offer these, or others of their names."""
    from vllm.lora.request import LoRARequest

    for name in names:
        models.lora_requests[name] = LoRARequest(name, 1, f"{below}/{name}")


def listed(cards: ModelCards, models: Any) -> list[dict[str, Any]]:
    """The cards of a page."""
    page = json.loads(run(cards.page(models)))
    assert "list" == page["object"]
    return list(page["data"])


def without_chance(cards: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """Without what vLLM draws anew, and the time."""
    for card in cards:
        for part in (card, *card["permission"]):
            part["created"] = None
        card["permission"][0]["id"] = None
    return cards


@pytest.mark.parametrize("tenant", [None, ACME, BOB])
def test_whoever_asks_gets_vllms_own_list(models: Any, tenant: Tenant | None) -> None:
    """Whoever asked before."""
    cards = ModelCards()
    for other in (None, ACME, BOB, tenant):
        with called_by(other):
            found = listed(cards, models)
            stock = run(models.show_available_models()).model_dump()["data"]
        assert without_chance(stock) == without_chance(found)


def test_what_the_engine_cannot_load_is_not_listed(models: Any) -> None:
    """And again once something else is offered under its name."""
    cards = ModelCards()
    setattr(models, REGISTRY, SimpleNamespace(refusals=SimpleNamespace(failed={"bob-1": "nan"})))
    assert ["base", "acme-1"] == [card["id"] for card in listed(cards, models)]
    getattr(models, REGISTRY).refusals.failed.clear()
    assert ["base", "acme-1", "bob-1"] == [card["id"] for card in listed(cards, models)]


def test_a_card_is_made_once(models: Any) -> None:
    """And anew where another adapter is offered under its name."""
    cards = ModelCards()
    before = {card["id"]: card for card in listed(cards, models)}
    offer(models, "bob-1", below="/new")
    offer(models, "c")
    after = {card["id"]: card for card in listed(cards, models)}
    assert before["acme-1"] == after["acme-1"]
    assert ("/bob-1", "/new/bob-1", "/c") == tuple(
        card["root"] for card in (before["bob-1"], after["bob-1"], after["c"])
    )
    del models.lora_requests["bob-1"]
    assert ["base", "acme-1", "c"] == [card["id"] for card in listed(cards, models)]
    assert {"acme-1", "c"} == set(*cards._forms.values())


@pytest.mark.parametrize("tenant", [None, Tenant("all", ACME.keys, ("*",))])
def test_others_have_their_turn_meanwhile(models: Any, tenant: Tenant | None) -> None:
    """However many adapters there are, and although adapters come and go meanwhile."""
    offer(models, *(f"x-{number}" for number in range(20 * AT_ONCE)))

    async def turns_while_listing() -> int:
        turns = 0
        page = asyncio.create_task(ModelCards().page(models))
        while not page.done():
            await asyncio.sleep(0)
            turns += 1
            models.lora_requests.pop(f"x-{turns * AT_ONCE}", None)
            offer(models, f"y-{turns}")
        assert len(json.loads(page.result())["data"]) > 19 * AT_ONCE
        return turns

    with called_by(tenant):
        assert run(turns_while_listing()) >= 20


def test_its_route_goes_before_vllms(models: Any) -> None:
    """The same card, so the same number, in both answers."""
    fastapi = pytest.importorskip("fastapi")
    from vllm.entrypoints.openai.models.api_router import attach_router

    app = fastapi.FastAPI()
    app.state.openai_serving_models = models
    attach_router(app)
    routes.attach(app, can_change=False)
    first, second = (ask(app, "GET", routes.LISTING_PATH) for _ in range(2))
    assert "application/json" == first.headers["content-type"]
    cards = [json.loads(answer.text)["data"] for answer in (first, second)]
    assert cards[0][1:] == cards[1][1:]
