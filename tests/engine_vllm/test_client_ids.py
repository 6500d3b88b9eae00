"""Clients that keep ids are answered as by stock vLLM, in its LLM class and in AsyncLLM."""

import json
import os
import subprocess
import sys
from typing import Any

import pytest

from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model
from tests.engine_vllm.conftest import ENGINE_ENVIRONMENT

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]


@pytest.mark.parametrize("kind", ["llm", pytest.param("async", marks=pytest.mark.long)])
def test_ids_are_answered_as_by_stock_vllm(kind: str, stock: list[Any], happened: Any) -> None:
    """Added, listed, pinned, asked for by id, removed and replaced: the same answers, and tokens."""
    assert stock == happened(kind)


@pytest.fixture(scope="module")
def happened(tmp_path_factory: pytest.TempPathFactory) -> Any:
    """What happens in an engine of one kind."""
    pytest.importorskip("vllm")
    model = ensure_tiny_model(default_cache_dir())
    root = tmp_path_factory.mktemp("adapters")
    for seed, name in enumerate("ab"):
        make_adapter(root / name, ModelDims.from_model(model), 8, seed=seed, scale=1.0)

    def happen(kind: str) -> list[Any]:
        told = root.parent / f"{kind}.json"
        command = [sys.executable, "-m", "tests.engine_vllm.client_ids"]
        environment = {**os.environ, **ENGINE_ENVIRONMENT}
        words = [kind, str(model), str(root), str(told)]
        subprocess.run([*command, *words], check=True, stdout=sys.stderr, env=environment)
        seen: list[Any] = json.loads(told.read_text(encoding="utf-8"))
        return seen

    return happen


@pytest.fixture(scope="module")
def stock(happened: Any) -> list[Any]:
    """What happens in vLLM's own; the base model and both adapters say different things."""
    seen: list[Any] = happened("stock")
    assert 3 == len({tuple(answer) for method, answer in seen if method == "generate"})
    return seen
