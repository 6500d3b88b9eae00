"""What a server has: its list of models, and folders of adapters."""

import asyncio
import json
from pathlib import Path

import pytest

from chameleon_lora.bench.discovery import (
    ServerModels,
    UnreachableError,
    adapters_below,
    ask_server,
    named,
    served_of,
    with_ranks,
)
from chameleon_lora.errors import AdapterNotFoundError, BenchError
from chameleon_lora.workload.named_adapters import NamedAdapter
from tests.bench.one_answer import OneAnswer

URL = "http://127.0.0.1:8000/v1/models"
BASE = {"id": "llama", "root": "/models/llama", "parent": None, "max_model_len": 2048}


def listing(*cards: object) -> str:
    """The body of an answer to GET /v1/models."""
    return json.dumps({"object": "list", "data": cards})


def asked(status: int, text: str, headers: dict[str, str] | None = None) -> ServerModels:
    """What a real server with that answer is taken to have."""

    async def ask() -> ServerModels:
        async with OneAnswer(status, text) as server:
            return await ask_server(server.base_url, headers)

    return asyncio.run(ask())


def adapter_folder(path: Path, rank: int) -> Path:
    """A folder with an adapter's configuration."""
    path.mkdir(parents=True)
    fields = {"peft_type": "LORA", "r": rank, "lora_alpha": 8, "target_modules": ["q_proj"]}
    (path / "adapter_config.json").write_text(json.dumps(fields))
    return path


def test_cards_with_a_parent_are_adapters(tmp_path: Path) -> None:
    """Their rank is read from the folder that their root names, if it is on this machine."""
    root = adapter_folder(tmp_path / "near", 16)
    cards = (
        BASE,
        {"id": "near", "root": str(root), "parent": "llama"},
        {"id": "far", "root": "/elsewhere/far", "parent": "llama"},
    )
    expected = ServerModels("llama", 2048, (NamedAdapter("near", 16), "far"))
    assert expected == asked(200, listing(*cards))


def test_a_plain_openai_list_has_a_model_and_no_adapters() -> None:
    """Cards without `parent` or context length are other servers'."""
    assert ServerModels("gpt", None, ()) == asked(200, listing({"id": "gpt", "object": "model"}))


def test_headers_are_sent() -> None:
    """Servers with a key want it here too."""

    async def ask() -> list[dict[str, str]]:
        async with OneAnswer(200, listing(BASE)) as server:
            await ask_server(server.base_url, {"Authorization": "Bearer k"})
            return server.headers

    (headers,) = asyncio.run(ask())
    assert "Bearer k" == headers["Authorization"]


def test_nobody_there_is_told_with_the_address() -> None:
    """And the way out."""
    with pytest.raises(UnreachableError, match=r"http://127\.0\.0\.1:9/v1/models cannot be rea"):
        asyncio.run(ask_server("http://127.0.0.1:9"))


@pytest.mark.parametrize(
    ("status", "text", "shown"),
    [
        (200, "<html><body>Welcome to nginx!</body></html>", "Welcome to nginx!"),
        (200, "[]", r"\[\]"),
        (200, '{"data": 3}', "data"),
        (200, '{"data": ["llama"]}', "llama"),
        (200, '{"data": []}', "data"),
        (404, "not found", "HTTP 404: not found"),
    ],
)
def test_what_is_no_list_of_models_is_shown(status: int, text: str, shown: str) -> None:
    """What came, from where, and what was expected; a server that is there is not unreachable."""
    with pytest.raises(BenchError, match=f"/v1/models answered '.*{shown}.*no OpenAI server") as e:
        asked(status, text)
    assert not isinstance(e.value, UnreachableError)


def test_a_server_that_wants_a_key_is_told_apart() -> None:
    """The way out names the option and the variable."""
    with pytest.raises(BenchError, match="HTTP 401: give --api-key, or set OPENAI_API_KEY"):
        asked(401, "no")


def test_a_list_of_adapters_alone_is_a_list() -> None:
    """As a tenant has it that may not use the base model."""
    cards = ({"id": name, "parent": "llama", "root": None} for name in "ab")
    assert ServerModels("llama", None, ("a", "b")) == served_of(URL, listing(*cards))


@pytest.mark.parametrize("context", [0, -1, "2048", None])
def test_a_context_that_is_no_length_is_not_known(context: object) -> None:
    """Whatever the card says there."""
    assert served_of(URL, listing(BASE | {"max_model_len": context})).context_tokens is None


def test_adapters_of_a_folder_have_names_and_ranks(tmp_path: Path) -> None:
    """Sorted by name; one without a usable configuration has no rank."""
    adapter_folder(tmp_path / "b", 8)
    adapter_folder(tmp_path / "a", 64)
    (tmp_path / "c").mkdir()
    (tmp_path / "c" / "adapter_config.json").write_text("broken")
    assert (NamedAdapter("a", 64), NamedAdapter("b", 8), "c") == adapters_below(tmp_path)


def test_a_folder_without_adapters_is_refused(tmp_path: Path) -> None:
    """Empty, or not there."""
    with pytest.raises(BenchError, match="holds 0 adapters"):
        adapters_below(tmp_path)
    with pytest.raises(AdapterNotFoundError, match="cannot be listed"):
        adapters_below(tmp_path / "missing")


def test_names_keep_their_order_and_get_known_ranks() -> None:
    """A name that is not known stays a name."""
    known = (NamedAdapter("a", 8), "b")
    assert ("c", "b", NamedAdapter("a", 8)) == with_ranks(["c", "b", "a"], known)


@pytest.mark.parametrize("root", [None, "", "/nowhere", "nul\0byte"])
def test_no_folder_is_no_rank(root: str | None) -> None:
    """The name stands alone."""
    assert "a" == named("a", root)
