"""What vLLM's own handlers do for a tenant: exactly as if others' adapters were not there."""

import asyncio
import contextlib
from collections import defaultdict
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.api.refusals import Refusals
from chameleon_lora.engine_vllm.api.registry import REGISTRY
from tests.engine_vllm.callers import ACME, BOB, called_by, run

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

BASE, NOT_FOUND, UNAUTHORIZED = "base", 404, 401


@dataclass
class Lookups:
    """A registry and a resolver that find nothing, and note what they were asked for."""

    registry: list[str] = field(default_factory=list)
    resolver: list[str] = field(default_factory=list)
    refusals: Refusals = field(
        default_factory=lambda: Refusals(
            SimpleNamespace(lora_requests={}, is_base_model=lambda _: False)
        )
    )

    async def refresh(self, name: str) -> None:
        """As the registry."""
        self.registry.append(name)

    async def withdraw(self, name: str) -> None:
        """As the registry."""
        self.refusals.refused.pop(name, None)

    async def resolve_lora(self, _: str, name: str) -> None:
        """As a resolver."""
        self.resolver.append(name)


@dataclass
class Site:
    """vLLM's handlers over adapters acme-1 and bob-1, without an engine."""

    serving: Any
    models: Any
    lookups: Lookups

    def check(self, name: str | None) -> dict[str, Any] | None:
        """The error that a request for this model gets, or None."""
        answer = run(self.serving._check_model(SimpleNamespace(model=name)))
        return None if answer is None else dict(answer.model_dump()["error"])

    def adapter(self, name: str) -> str | None:
        """The adapter such a request runs with, None for the base model."""
        found = self.serving._maybe_get_adapters(SimpleNamespace(model=name))
        return None if found is None else str(found.lora_name)

    def listed(self) -> list[str]:
        """GET /v1/models."""
        return [card.id for card in self.cards()]

    def cards(self) -> list[Any]:
        """Of GET /v1/models."""
        return list(run(self.models.show_available_models()).data)


@pytest.fixture
def site(monkeypatch: pytest.MonkeyPatch, hooked: None) -> Site:  # noqa: ARG001
    """With the hooks installed, and runtime updating on, so that resolvers are asked."""
    pytest.importorskip("vllm")
    monkeypatch.setenv("VLLM_ALLOW_RUNTIME_LORA_UPDATING", "1")
    from vllm.entrypoints.openai.models.protocol import BaseModelPath
    from vllm.entrypoints.openai.models.serving import OpenAIModelRegistry, OpenAIServingModels
    from vllm.entrypoints.serve.engine.serving import BaseServing
    from vllm.lora.request import LoRARequest
    from vllm.utils.counter import AtomicCounter

    lookups = Lookups()
    models = object.__new__(OpenAIServingModels)
    models.engine_client = SimpleNamespace()
    models.model_config = SimpleNamespace(model="m", max_model_len=64)
    models.base_model_paths = [BaseModelPath(name=BASE, model_path="/m")]
    models.registry = OpenAIModelRegistry(models.model_config, models.base_model_paths)
    names = ("acme-1", "bob-1")
    models.lora_requests = {n: LoRARequest(n, i, f"/{n}") for i, n in enumerate(names, 1)}
    models.lora_resolvers = [lookups]
    models.lora_resolver_lock = defaultdict(asyncio.Lock)
    models.lora_id_counter = AtomicCounter(10)
    setattr(models, REGISTRY, lookups)
    return Site(BaseServing(models, models.model_config), models, lookups)


@pytest.mark.parametrize("name", ["acme-1", "bob-1", BASE])
def test_without_a_tenant_every_name_is_known(site: Site, name: str) -> None:
    """To anybody on a server without tenants, and to the admin."""
    assert site.check(name) is None
    with called_by(None, may_control=True):
        assert site.check(name) is None
        assert {"acme-1", "bob-1", BASE} == set(site.listed())


def test_a_tenant_uses_its_own(site: Site) -> None:
    """Its adapters, and the base model if it may; a request without a name means the base model."""
    with called_by(ACME):
        assert [None, None] == [site.check("acme-1"), site.check(BASE)]
        assert ["acme-1", None] == [site.adapter("acme-1"), site.adapter(BASE)]
        assert [BASE, "acme-1"] == site.listed()
    with called_by(BOB):
        assert "bob-1" == site.adapter("bob-1")
        assert ["bob-1"] == site.listed()


@pytest.mark.parametrize("name", ["acme-1", BASE])
def test_anothers_name_is_as_one_that_nobody_has(site: Site, name: str) -> None:
    """Same error but for the name, of a name that exists, one that does not, and one it might have."""
    nobody = "zzz-1"
    with called_by(BOB):
        error, unknown, own = site.check(name), site.check(nobody), site.check("bob-9")
    assert error is not None
    assert unknown is not None
    assert own is not None
    assert NOT_FOUND == error["code"]
    for other, other_name in ((unknown, nobody), (own, "bob-9")):
        assert {**error, "message": ""} == {**other, "message": ""}
        assert error["message"].replace(f"`{name}`", f"`{other_name}`") == other["message"]


@pytest.mark.parametrize("has_lora", [True, False])
def test_a_tenant_is_told_of_no_model_and_no_path_of_others(site: Site, has_lora: bool) -> None:
    """Neither by a 404, also of a server without adapters, nor by the list of its own models."""
    if not has_lora:
        delattr(site.models, REGISTRY)
    with called_by(BOB):
        error = site.check("nobody")
        (card,) = site.cards()
    assert error is not None
    assert "The model `nobody` does not exist." == error["message"]
    assert ("bob-1", None) == (card.root, card.parent)
    with called_by(ACME):
        error = site.check("nobody")
        assert [(BASE, None), ("acme-1", BASE)] == [(c.root, c.parent) for c in site.cards()]
    assert error is not None
    assert error["message"].startswith("The model `nobody` does not exist.")
    assert not {"acme-1", "bob-1", "/m"} & set(error["message"].split())


@pytest.mark.parametrize(
    ("name", "hint"), [("bob1", " Did you mean `bob-1`?"), ("nobody", ""), ("x" * 10_000, "")]
)
def test_whoever_may_know_all_is_told_what_there_is(site: Site, name: str, hint: str) -> None:
    """How many adapters, where they are listed and the nearest name: without tenants, and the admin."""
    lists = "2 adapters are served too: GET /v1/models lists them."
    for is_admin in (False, True):
        with called_by(None, may_control=True) if is_admin else contextlib.nullcontext():
            error = site.check(name)
        assert error is not None
        assert NOT_FOUND == error["code"]
        assert error["message"].startswith(f"The model `{name}` does not exist.")
        assert error["message"].endswith(f" {lists}{hint}")


def test_without_adapters_vllms_words_stay(site: Site) -> None:
    """There is nothing to add."""
    site.models.lora_requests.clear()
    error = site.check("nobody")
    assert error is not None
    assert error["message"].startswith("The model `nobody` does not exist.")
    assert "GET /v1/models" not in error["message"]


def test_nothing_is_looked_up_for_anothers_name(site: Site) -> None:
    """No folder and no resolver, whether it exists or not; so it takes no longer either."""
    with called_by(BOB):
        for name in ("acme-1", "acme-9", "zzz-1", BASE):
            site.check(name)
        assert ([], []) == (site.lookups.registry, site.lookups.resolver)
        site.check("bob-9")
    assert (["bob-9"], ["bob-9"]) == (site.lookups.registry, site.lookups.resolver)


def test_why_an_adapter_is_broken_is_told_to_its_tenant_only(site: Site) -> None:
    """To others its name is one that nobody has."""
    site.lookups.refusals.refused["bob-9"] = "no weights"
    with called_by(BOB):
        error = site.check("bob-9")
    assert error is not None
    assert "no weights" == error["message"]
    with called_by(ACME):
        error = site.check("bob-9")
    assert error is not None
    assert NOT_FOUND == error["code"]


def test_no_other_way_leads_to_anothers_adapter(site: Site) -> None:
    """Where a route does not mind what the check says, the adapter is not found."""
    from vllm.exceptions import VLLMNotFoundError

    with called_by(BOB):
        for name in ("acme-1", "zzz-1", BASE):
            with pytest.raises(VLLMNotFoundError, match=f"`{name}` does not exist"):
                site.adapter(name)


def test_content_of_a_kind_names_no_adapter_of_others(site: Site) -> None:
    """vLLM takes an adapter named after the kind of an image or sound; a tenant only its own."""
    from vllm.lora.request import LoRARequest

    site.models.lora_requests["image"] = LoRARequest("image", 3, "/image")
    messages = [{"role": "user", "content": [{"type": "image_url"}]}]
    request = SimpleNamespace(model=BASE, messages=messages)
    found = []
    for tenant in (None, ACME):
        with called_by(tenant):
            adapter = site.serving._maybe_get_adapters(request, supports_default_mm_loras=True)
        found.append(None if adapter is None else adapter.lora_name)
    assert ["image", None] == found


def test_loading_needs_the_admin_whatever_the_route(site: Site) -> None:
    """A caller that controls nothing gets 401 from the handlers themselves."""
    request = SimpleNamespace(lora_name="x", lora_path="/x", load_inplace=False)
    with called_by(None):
        for method in (site.models.load_lora_adapter, site.models.unload_lora_adapter):
            assert UNAUTHORIZED == run(method(request)).error.code
    with called_by(None, may_control=True):
        assert NOT_FOUND == run(site.models.unload_lora_adapter(request)).error.code
