"""A server that embeds: a broken adapter costs the requests that name it, as on one that writes."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from faults.kinds.broken_adapters import break_config, spoil, widen
from tests.live.client import OK, Connection
from tests.live.servers import BASE, EMBEDDING, Server

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("server", [EMBEDDING], indirect=True, ids=["embedding"]),
]
BAD_REQUEST, NOT_FOUND = 400, 404
PROMPT = [5, 6, 7]
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/embeddings": {"input": PROMPT},
    "/pooling": {"input": PROMPT},
    "/score": {"text_1": "red", "text_2": "blue"},
    "/rerank": {"query": "red", "documents": ["blue", "green"]},
}


async def ask(client: Connection, route: str, model: str) -> tuple[int, Any]:
    """Status and content of what this route answers for this model."""
    status, text = await client.post(route, {"model": model, **ROUTES[route]})
    return status, json.loads(text)


@pytest.mark.parametrize("route", ROUTES)
@pytest.mark.parametrize(
    ("ruin", "why"),
    [
        (break_config, "adapter_config.json"),  # found at sight
        (spoil, "nan or infinity"),  # found in the engine
        (widen, "but this model has room for"),
    ],
)
def test_a_broken_adapter_costs_its_own_requests(
    server: Server, route: str, ruin: Callable[[Path, Path], None], why: str
) -> None:
    """Each gets 400 with name and reason, the first and the later ones; others have their answers."""

    async def ask_around(client: Connection) -> tuple[list[Any], list[tuple[int, Any]]]:
        before = [await ask(client, route, name) for name in (BASE, "a1")]
        failed = [await ask(client, route, broken) for _ in range(2)]
        after = [await ask(client, route, name) for name in (BASE, "a1")]
        return [_values(answer) for _, answer in (*before, *after)], failed

    broken = server.fresh_name()
    staged = server.fixtures.place(5, server.fixtures.root.parent / f"staged-{broken}")
    ruin(staged, server.fixtures.model)
    staged.rename(server.adapters / broken)
    values, failed = server.run(ask_around)
    assert values[:2] == values[2:]
    assert values[0] != values[1]
    for status, answer in failed:
        assert BAD_REQUEST == status
        assert broken in answer["error"]["message"]
        assert why in answer["error"]["message"]


@pytest.mark.parametrize("route", ROUTES)
def test_a_new_folder_answers_the_first_request_for_it(server: Server, route: str) -> None:
    """Though nobody has looked at the folder since; a name that nobody has is unknown, a near one told."""

    async def ask_for_both(client: Connection) -> list[tuple[int, Any]]:
        return [await ask(client, route, name) for name in (server.put(8), "a1x")]

    found, unknown = server.run(ask_for_both)
    assert (OK, NOT_FOUND) == (found[0], unknown[0])
    assert "adapters are served too" in unknown[1]["error"]["message"]
    assert "Did you mean `a1`?" in unknown[1]["error"]["message"]


def _values(answer: Any) -> str:
    """The numbers in an answer of any route, without what tells one request from another."""
    rows = answer.get("data") or answer["results"]
    keys = ("embedding", "data", "score", "relevance_score")
    return json.dumps([[row[key] for key in keys if key in row] for row in rows])
