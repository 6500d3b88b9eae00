"""vLLM's resolvers are asked for names that could be an adapter's, and for no others."""

import asyncio
import inspect
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.engine_vllm.api.last_trouble import LastTrouble
from chameleon_lora.engine_vllm.api.serving import NameLocks, resolving

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

BASE = "tiny"
DIMS = ModelDims(8, 8, 1, 1, 1, 8, BASE)
NOT_FOUND = 404


class IdCounter:
    """vLLM's AtomicCounter."""

    def __init__(self) -> None:
        self.numbers: Iterator[int] = itertools.count(1)

    def inc(self, _by: int) -> int:
        """The next number."""
        return next(self.numbers)


class TakingEngine:
    """Takes every adapter it is offered."""

    async def add_lora(self, _request: Any) -> bool:
        """Added."""
        return True


@dataclass
class Models:
    """What resolve_lora uses of OpenAIServingModels."""

    lora_resolvers: list[Any]
    chameleon_registry: object | None = field(
        default_factory=lambda: SimpleNamespace(resolvers_trouble=LastTrouble())
    )
    lora_requests: dict[str, Any] = field(default_factory=dict)
    lora_id_counter: IdCounter = field(default_factory=IdCounter)
    lora_resolver_lock: Any = field(default_factory=NameLocks)
    engine_client: TakingEngine = field(default_factory=TakingEngine)
    model_config: Any = field(default_factory=lambda: SimpleNamespace(model=BASE))

    def resolve(self, name: str) -> Any:
        """What a request for an unknown name comes to: a LoRARequest, or an ErrorResponse."""
        from vllm.entrypoints.openai.models.serving import OpenAIServingModels

        stock = inspect.unwrap(OpenAIServingModels.resolve_lora)
        return asyncio.run(resolving(stock)(self, name))


class Broken:
    """A resolver that cannot look."""

    async def resolve_lora(self, _base: str, _name: str) -> None:
        """Never answers."""
        raise ConnectionError("no such host")


class FindsNothing:
    """A resolver that finds nothing, and what it was asked for."""

    def __init__(self) -> None:
        self.names: list[str] = []

    async def resolve_lora(self, _base: str, name: str) -> None:
        """Noted."""
        self.names.append(name)


@pytest.fixture
def folder_resolver(tmp_path: Path) -> Any:
    """vLLM's own over tmp_path/cache, which holds `a`; `outside` lies beside it."""
    resolvers = pytest.importorskip("vllm.plugins.lora_resolvers.filesystem_resolver")
    for path in (tmp_path / "cache" / "a", tmp_path / "outside"):
        make_adapter(path, DIMS, 2, seed=1, target_modules=["q_proj"])
    return resolvers.FilesystemResolver(str(tmp_path / "cache"))


def test_an_adapters_name_is_resolved(folder_resolver: Any) -> None:
    """What vLLM finds for a plain name is served."""
    models = Models([folder_resolver])
    assert "a" == models.resolve("a").lora_name
    assert ["a"] == list(models.lora_requests)


@pytest.mark.parametrize("form", ["../outside", "a/../../outside", "{root}/outside", ".", ""])
def test_a_path_is_not_resolved(folder_resolver: Any, tmp_path: Path, form: str) -> None:
    """It leads out of the resolver's folder, where stock vLLM would follow it."""
    name = form.format(root=tmp_path)
    models = Models([folder_resolver])
    assert NOT_FOUND == models.resolve(name).error.code
    assert {} == models.lora_requests
    if "outside" in form:
        assert (
            "outside" in Models([folder_resolver], chameleon_registry=None).resolve(name).lora_path
        )


@pytest.mark.parametrize("name", ["a\0", "a\nINFO all is well", "x" * 10_000, "\u202ea"])
def test_what_is_no_name_is_not_resolved(name: str) -> None:
    """No resolver is asked, and the answer is that of any other name."""
    asked = FindsNothing()
    assert NOT_FOUND == Models([asked]).resolve(name).error.code
    assert [] == asked.names
    assert NOT_FOUND == Models([asked]).resolve("nobody").error.code
    assert ["nobody"] == asked.names


def test_a_resolver_that_fails_is_a_name_not_found(caplog: pytest.LogCaptureFixture) -> None:
    """The client gets 404, not 500; the log says why, once, however often clients ask."""
    models = Models([Broken()])
    for name in ("a", "b", "c"):
        assert NOT_FOUND == models.resolve(name).error.code
    (record,) = caplog.records
    assert "'a'" in record.getMessage()
    assert "no such host" in caplog.text


def test_names_asked_for_leave_nothing_behind(folder_resolver: Any) -> None:
    """No lock is kept for a name that nobody is asking for."""
    for resolvers in ([], [folder_resolver], [Broken()]):
        models = Models(resolvers)
        for number in range(20):
            models.resolve(f"nobody-{number}")
        assert 0 == len(models.lora_resolver_lock)


def test_one_name_has_one_lock() -> None:
    """While somebody uses it, others get the same; other names have their own."""
    locks = NameLocks()
    mine = locks["a"]
    assert mine is locks["a"]
    other = locks["b"]
    assert mine is not other
    assert 2 == len(locks)
