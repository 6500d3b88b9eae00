"""vLLM's own loading of an adapter by request, with Chameleon's hooks in it."""

import asyncio
import inspect
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.api.launch import serve
from chameleon_lora.engine_vllm.api.registry import REGISTRY, AdapterRegistry
from chameleon_lora.engine_vllm.api.routes import with_routes
from chameleon_lora.engine_vllm.api.serving import (
    checking,
    publishing,
    unknown_model,
)
from chameleon_lora.engine_vllm.hook_table import CLI_ENV_SETUP
from chameleon_lora.engine_vllm.hooks import target_of
from chameleon_lora.errors import UnsupportedEngineError
from chameleon_lora.policy.plan import Fault
from tests.engine_vllm.served_folder import FakeEngine, ServedFolder, opened_by

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


class FakeAsyncLlm:
    """The engine's client, in whose own way the engine learns the id, once it knows the adapter."""

    def __init__(self, engine: FakeEngine) -> None:
        self.engine = engine

    async def add_lora(self, lora_request: Any) -> bool:
        """Whether the engine was told of it."""
        return lora_request.lora_name in [source["name"] for _, [source] in self.engine.calls]


def load(
    served: ServedFolder, name: str, *, is_started: bool = True, load_inplace: bool = False
) -> Any:
    """What vLLM's handler answers to a request that loads the folder of this name."""
    from vllm.entrypoints.openai.models.serving import OpenAIServingModels

    served.registry = AdapterRegistry(served.models, None, served.scan_s)
    client: Any = FakeAsyncLlm(served.engine)
    setattr(client, REGISTRY, served.registry)
    models: Any = object.__new__(OpenAIServingModels)
    vars(models).update(vars(served.models))
    setattr(models, REGISTRY, served.registry)
    add_lora = publishing(FakeAsyncLlm.add_lora)
    models.engine_client = SimpleNamespace(add_lora=lambda request: add_lora(client, request))
    models.lora_resolver_lock = served.locks
    models.registry = served.models
    request = SimpleNamespace(
        lora_name=name,
        lora_path=str(served.root / name),
        load_inplace=load_inplace,
        is_3d_lora_weight=False,
    )
    stock = inspect.unwrap(OpenAIServingModels.load_lora_adapter)

    async def ask() -> Any:
        if is_started:
            await served.registry.start()
        return await checking(stock)(models, request)

    return asyncio.run(ask())


def test_an_adapter_loaded_by_request_is_looked_at_once(tmp_path: Path) -> None:
    """It is checked once and its bytes are read once, and the engine is told what was found."""
    pytest.importorskip("vllm")
    served = ServedFolder(tmp_path / "adapters")
    served.add("a", rank=4)
    opened = opened_by(lambda: load(served, "a"))
    assert 2 == opened.count(str(served.root / "a" / WEIGHTS_NAME))
    [(method, [source])] = served.engine.calls
    assert ("chameleon_try", "a", 4) == (method, source["name"], source["rank"])


def test_what_the_engine_cannot_load_is_named_to_nobody(tmp_path: Path) -> None:
    """Neither counted nor hinted at, as long as no other files lie there."""
    pytest.importorskip("vllm")
    served = ServedFolder(tmp_path / "adapters")
    for name in ("spanish-a", "spanish-b"):
        served.add(name)
    served.refresh_all()
    models: Any = served.models
    setattr(models, REGISTRY, served.registry)
    served.registry.refusals.found_unfit(models.lora_requests["spanish-b"], "nan")

    told = unknown_model(models, "spanish-bb", "No.")
    assert "No. 1 adapters are served too" in told
    assert "Did you mean `spanish-a`?" in told


def test_an_adapter_of_the_command_line_is_announced_unread(tmp_path: Path) -> None:
    """A server with hundreds of them starts without reading each."""
    pytest.importorskip("vllm")
    served = ServedFolder(tmp_path / "adapters")
    served.add("a")
    assert "added successfully" in load(served, "a", is_started=False)
    assert ["chameleon_announce"] == [method for method, _ in served.engine.calls]


@pytest.mark.parametrize(
    ("fault", "status", "kind"),
    [
        (Fault.CONTENT, 400, "BadRequestError"),
        (Fault.FILES, 409, "ConflictError"),
        (Fault.SERVER, 500, "InternalServerError"),
    ],
)
def test_one_that_the_engine_cannot_load_is_refused_and_the_former_stays(
    tmp_path: Path, fault: Fault, status: int, kind: str
) -> None:
    """By status and words of the failure; what is listed under the name is what was."""
    pytest.importorskip("vllm")
    served = ServedFolder(tmp_path / "adapters")
    served.add("a")
    assert "added successfully" in load(served, "a", is_started=False)
    former = served.models.lora_requests["a"]
    served.engine.failure = ["Adapter 'a' cannot be loaded: nan", fault.value]
    error = load(served, "a", load_inplace=True).error
    assert (status, kind) == (error.code, error.type)
    assert "Adapter 'a' cannot be loaded: nan" == error.message
    assert former is served.models.lora_requests["a"]


def test_one_that_cannot_be_served_is_refused_with_its_reason(tmp_path: Path) -> None:
    """The engine is told nothing."""
    pytest.importorskip("vllm")
    served = ServedFolder(tmp_path / "adapters")
    served.add("wide", rank=9)
    error = load(served, "wide").error
    assert (400, "BadRequestError") == (error.code, error.type)
    assert "its rank is 9, the limit is 8" in error.message
    assert [] == served.engine.calls


@pytest.mark.usefixtures("hooked")
@pytest.mark.parametrize("serving", [{"tenants": "x"}, {"admin_key_hash": "sha256:" + "0" * 64}])
def test_a_server_that_would_not_part_tenants_is_not_built(
    serving: dict[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another plugin of the API server has replaced what signs their requests."""
    from vllm.v1.engine.async_llm import AsyncLLM

    async def add_request(_: Any, params: Any, lora_request: Any, priority: int) -> Any:
        return params, lora_request, priority

    monkeypatch.setattr(AsyncLLM, "add_request", add_request)
    args = SimpleNamespace(
        scheduler_cls=SCHEDULER, additional_config={"chameleon": {"serving": serving}}
    )
    app = SimpleNamespace(state=SimpleNamespace(args=args))
    with pytest.raises(UnsupportedEngineError, match=r"not in place at .*AsyncLLM\.add_request:"):
        with_routes(lambda _: None)(app)


def test_a_command_line_of_other_pieces_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """`chameleon serve` names what it misses, before it starts anything."""
    pytest.importorskip("vllm")
    monkeypatch.delattr(inspect.getmodule(target_of(CLI_ENV_SETUP)), "cli_env_setup")
    with pytest.raises(UnsupportedEngineError, match=r"lacks .*cli_env_setup\. "):
        serve(["model"], str, str)
