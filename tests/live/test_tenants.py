"""Two tenants and an admin on a real server: who sees what, and that one's flood does not drown another."""

import asyncio
import json
import re
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import aiohttp
import pytest
from yarl import URL

from chameleon_lora.engine_vllm.api.auth import ASKING
from chameleon_lora.servers.process import running_server
from chameleon_lora.tenants import hash_key
from faults.adapter_fixtures import SERVED, AdapterFixtures
from tests.live.client import LIMIT_S, OK, Connection, Question, until
from tests.live.servers import BASE, CONTEXT_TOKENS, NAMES, ServerSetup, server_spec
from tests.live.stock import ANSWER_TOKENS, BOOK, INTERLEAVED, PROMPTS, Stock

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]

T = TypeVar("T")
BAD_REQUEST, UNAUTHORIZED, NOT_FOUND, TOO_MANY = 400, 401, 404, 429
KEYS = {name: f"{name}-key-0123456789" for name in ("admin", "acme", "bob", "slow", "carl", "dora")}
HOLDING_TOKENS = CONTEXT_TOKENS // 2
SETUP = ServerSetup(
    "tenants",
    slots=2,
    seats=1,
    flags=(
        *("--set", "serving.scan_s=0.1", "--enable-prompt-tokens-details"),
        *("--uvicorn-log-level", "info"),  # a line for each answer, in their order
    ),
)
CHAT_TEMPLATE = "{% for message in messages %}{{ message['content'] }} {% endfor %}"
TENANTS = f"""
[tenants.acme]
keys = ["{hash_key(KEYS["acme"])}"]
adapters = ["acme-*"]
base_model = true

[tenants.bob]
keys = ["{hash_key(KEYS["bob"])}"]
adapters = ["bob-*"]

[tenants.carl]
keys = ["{hash_key(KEYS["carl"])}"]
adapters = ["acme-*"]
base_model = true

[tenants.dora]
keys = ["{hash_key(KEYS["dora"])}"]
adapters = ["acme-*"]
base_model = true
share_prefixes = true

[tenants.slow]
keys = ["{hash_key(KEYS["slow"])}"]
adapters = ["acme-*"]
requests_per_s = 0.01
burst = 2
output_tokens_per_minute = 50
"""
ROUTES: dict[str, dict[str, Any]] = {
    "/v1/completions": {"prompt": [1, 2, 3], "max_tokens": 2},
    "/v1/chat/completions": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/v1/responses": {"input": "a", "max_output_tokens": 2},
    "/v1/messages": {"messages": [{"role": "user", "content": "a"}], "max_tokens": 2},
    "/tokenize": {"prompt": "a"},
    "/detokenize": {"tokens": [1, 2]},
}


@dataclass(frozen=True, slots=True)
class TenantServer:
    """A server with tenants, and its log."""

    url: str
    log: Path

    def run(self, name: str | None, work: Callable[[Connection], Awaitable[T]]) -> T:
        """What `work` answers, given a connection with this one's key."""
        headers = {} if name is None else {"Authorization": f"Bearer {KEYS[name]}"}

        async def connected() -> T:
            timeout = aiohttp.ClientTimeout(total=LIMIT_S)
            async with aiohttp.ClientSession(timeout=timeout, headers=headers) as session:
                return await work(Connection(session, self.url))

        return asyncio.run(connected())

    def post(self, name: str | None, path: str, body: dict[str, Any]) -> tuple[int, str]:
        """One POST."""
        return self.run(name, lambda client: client.post(path, body))

    def get(self, name: str | None, path: str) -> tuple[int, str]:
        """One GET."""
        return self.run(name, lambda client: client.get(path))


@pytest.fixture(scope="module")
def server(
    fixtures: AdapterFixtures,
    stock: Stock,  # noqa: ARG001  # so that its server is gone before this one starts
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[TenantServer]:
    """One with adapters acme-1, bob-1 and a broken bob-2, and others that are only the admin's."""
    home = tmp_path_factory.mktemp("tenants")
    adapters = home / "adapters"
    adapters.mkdir()
    for name, number in {**SERVED, "acme-1": 1, "bob-1": 2, "bob-2": 3}.items():
        fixtures.place(number, adapters / name)
    (adapters / "bob-2" / "adapter_model.safetensors").write_bytes(b"broken")
    (home / "tenants.toml").write_text(TENANTS)
    (home / "admin.key").write_text(KEYS["admin"])
    (home / "chat.jinja").write_text(CHAT_TEMPLATE)
    flags = (
        *("--tenants", str(home / "tenants.toml"), "--admin-key-file", str(home / "admin.key")),
        *("--chat-template", str(home / "chat.jinja")),
    )
    setup = ServerSetup(SETUP.name, SETUP.slots, SETUP.seats, flags=(*SETUP.flags, *flags))
    with running_server(server_spec(setup, fixtures, adapters, home / "server.log")) as url:
        yield TenantServer(url, home / "server.log")


@pytest.mark.parametrize(
    ("name", "models"),
    [("acme", {BASE, "acme-1"}), ("bob", {"bob-1"}), ("admin", {*NAMES, "acme-1", "bob-1"})],
)
def test_each_sees_its_own_models(server: TenantServer, name: str, models: set[str]) -> None:
    """GET /v1/models lists what it may name."""
    assert models == set(server.run(name, lambda client: client.models()))


@pytest.mark.parametrize("path", ROUTES)
def test_each_uses_its_own_models(server: TenantServer, path: str) -> None:
    """On every route that names one."""
    for name, model in (("acme", "acme-1"), ("acme", BASE), ("bob", "bob-1"), ("admin", "bob-1")):
        status, text = server.post(name, path, {"model": model, **ROUTES[path]})
        assert OK == status, text


@pytest.mark.parametrize("path", ROUTES)
@pytest.mark.parametrize("model", ["acme-1", BASE])
def test_anothers_model_is_as_one_that_nobody_has(
    server: TenantServer, path: str, model: str
) -> None:
    """Status and body are those of an unknown name, but for the name in the text."""
    bodies = [{"model": asked, **ROUTES[path]} for asked in (model, "nobody", "bob-9")]
    answers = [server.post("bob", path, body) for body in bodies]
    named = [
        (status, text.replace(str(body["model"]), "NAME"))
        for (status, text), body in zip(answers, bodies, strict=True)
    ]
    assert [NOT_FOUND] * 3 == [status for status, _ in named]
    # The base model's name stands in every such text, as vLLM's valid alias.
    expected = {text.replace(BASE, "NAME") for _, text in named}
    assert 1 == len(expected)


@pytest.mark.parametrize("model", [None, ""])
def test_no_name_is_no_way_to_the_base_model(server: TenantServer, model: str | None) -> None:
    """vLLM takes a request without a name as one to the base model; a tenant without it gets 404."""
    body = {"model": model, **ROUTES["/v1/completions"]}
    assert NOT_FOUND == server.post("bob", "/v1/completions", body)[0]
    body.pop("model")
    assert NOT_FOUND == server.post("bob", "/v1/completions", body)[0]
    assert OK == server.post("acme", "/v1/completions", body)[0]


@pytest.mark.parametrize("path", sorted(ASKING - ROUTES.keys()))
def test_no_other_open_route_tells_names_apart(server: TenantServer, path: str) -> None:
    """Also those that a server of a generating model has not."""
    answers = [
        server.post("bob", path, {"model": name, "input": "a", "messages": [], "max_tokens": 1})
        for name in ("acme-1", "nobody")
    ]
    assert answers[0] == (answers[1][0], answers[1][1].replace("nobody", "acme-1"))
    assert OK != answers[0][0]


def test_why_an_adapter_is_broken_is_told_to_its_tenant_only(server: TenantServer) -> None:
    """Others get 404."""
    body = {"model": "bob-2", **ROUTES["/v1/completions"]}
    statuses = [server.post(name, "/v1/completions", body)[0] for name in ("bob", "acme")]
    assert [BAD_REQUEST, NOT_FOUND] == statuses


@pytest.mark.parametrize("path", ["/chameleon/state", "/chameleon/arrivals", "/metrics"])
def test_pages_are_for_the_admin(server: TenantServer, path: str) -> None:
    """401 for tenants and for nobody."""
    statuses = [server.get(name, path)[0] for name in (None, "acme", "admin")]
    assert [UNAUTHORIZED, UNAUTHORIZED, OK] == statuses


@pytest.mark.parametrize("verb", ["load", "unload", "pin", "unpin"])
def test_adapters_are_changed_by_the_admin(server: TenantServer, verb: str) -> None:
    """401 for tenants, also for their own adapter; the admin gets as far as the name."""
    path, body = f"/v1/{verb}_lora_adapter", {"lora_name": "nobody", "lora_path": "/nowhere"}
    statuses = [server.post(name, path, body)[0] for name in (None, "acme", "admin")]
    assert [UNAUTHORIZED, UNAUTHORIZED, NOT_FOUND] == statuses


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("OPTIONS", "/metrics"), ("OPTIONS", "/metrics/"), ("HEAD", "/metrics")),
        *(("GET", "/chameleon/state%0A"), ("GET", "/chameleon/state/"), ("GET", "/docs")),
        *(("GET", "/v1/models%0A"), ("GET", "/%76%31/models"), ("POST", "/v1/abort_requests")),
    ],
)
def test_no_spelling_opens_a_page(server: TenantServer, method: str, path: str) -> None:
    """Neither without a key, nor for bob what is not his: no name of an adapter of acme's comes back."""

    async def ask(client: Connection) -> tuple[int, str]:
        url = URL(f"{client.url}{path}", encoded=True)
        async with client.session.request(method, url, allow_redirects=False) as response:
            return response.status, await response.text()

    assert UNAUTHORIZED == server.run(None, ask)[0]
    status, text = server.run("bob", ask)
    assert "acme" not in text
    assert status in (OK, UNAUTHORIZED, NOT_FOUND)


def test_probes_are_open_and_other_routes_closed(server: TenantServer) -> None:
    """Health needs no key; what is not for tenants is not there for them."""
    assert OK == server.get(None, "/health")[0]
    assert UNAUTHORIZED == server.get(None, "/v1/models")[0]
    assert NOT_FOUND == server.get("acme", "/openapi.json")[0]
    assert OK == server.get("admin", "/openapi.json")[0]


def cached_tokens(server: TenantServer, name: str, model: str, prompt: tuple[int, ...]) -> int:
    """How many of a prompt's tokens were found in the prefix cache."""
    body = Question(model, prompt, tokens=1).body(stream=False)
    status, text = server.post(name, "/v1/completions", body)
    assert OK == status, text
    details = json.loads(text)["usage"]["prompt_tokens_details"] or {}
    return int(details.get("cached_tokens") or 0)


@pytest.mark.parametrize("model", [BASE, "acme-1"])
def test_no_tenant_can_time_anothers_prompts(server: TenantServer, model: str) -> None:
    """A prompt is cached for its tenant alone, though another may use the same model."""
    found = [
        cached_tokens(server, name, model, BOOK) > 0 for name in ("acme", "acme", "carl", "carl")
    ]
    assert [False, True, False, True] == found


def test_tenants_that_share_prefixes_share_them_with_each_other(server: TenantServer) -> None:
    """The admin is one of them; the others' prompts stay their own."""
    prompt = BOOK[::-1]
    names = ("acme", "dora", "admin", "carl")
    assert [False, False, True, False] == [
        cached_tokens(server, name, BASE, prompt) > 0 for name in names
    ]


def test_several_answers_to_one_prompt_are_a_tenants_own_too(server: TenantServer) -> None:
    """vLLM makes a request of each of `n` answers."""
    prompt = (*BOOK[100:], *BOOK[:100])
    body = {**Question(BASE, prompt, tokens=1).body(stream=False), "n": 2, "temperature": 1}
    assert OK == server.post("acme", "/v1/completions", body)[0]
    assert [False, True] == [
        cached_tokens(server, name, BASE, prompt) > 0 for name in ("carl", "acme")
    ]


def test_answers_are_those_of_a_server_without_tenants(server: TenantServer, stock: Stock) -> None:
    """Token for token, whatever a client writes about priority and shares."""
    question = Question("acme-1", PROMPTS[0], ANSWER_TOKENS)
    forged = {"chameleon_share": ["bob", 1e9], "output_tokens": 1}
    body = {**question.body(stream=False), "priority": -9, "vllm_xargs": forged}
    status, text = server.post("acme", "/v1/completions", body)
    assert OK == status, text
    tokens = tuple(json.loads(text)["choices"][0]["token_ids"])
    assert stock.answer(1, PROMPTS[0], ANSWER_TOKENS) == tokens


@pytest.mark.parametrize("at_once", [1, 6])
def test_interleaved_adapters_answer_as_stock_vllm_does(
    server: TenantServer, stock: Stock, at_once: int
) -> None:
    """45 requests of the admin's to 8 adapters and the base model get stock vLLM's tokens."""
    expected = [stock.answer(SERVED.get(n), p, ANSWER_TOKENS) for n, p in INTERLEAVED]
    questions = [Question(name, prompt, ANSWER_TOKENS) for name, prompt in INTERLEAVED]
    replies = server.run("admin", lambda client: client.ask_all(questions, at_once))
    assert expected == [reply.tokens for reply in replies]


def test_limits_hold_and_say_when_to_come_again(server: TenantServer) -> None:
    """400 for what never fits, which counts as a request, then 429 with Retry-After once the burst is spent."""

    async def ask(client: Connection) -> list[tuple[int, str | None]]:
        found = []
        for tokens in (51, 2, 2):
            body = {"model": "acme-1", "prompt": [1], "max_tokens": tokens}
            url = f"{client.url}/v1/completions"
            async with client.session.post(url, json=body) as response:
                found.append((response.status, response.headers.get("Retry-After")))
        return found

    statuses = server.run("slow", ask)
    assert [(BAD_REQUEST, None), (OK, None)] == statuses[:2]
    status, again = statuses[2]
    assert TOO_MANY == status
    assert again is not None
    assert 90 <= int(again) <= 100


async def waits(client: Connection, requests: int) -> bool:
    """Whether so many wait in the lanes."""
    headers = {"Authorization": f"Bearer {KEYS['admin']}"}
    async with client.session.get(f"{client.url}/chameleon/state", headers=headers) as response:
        lanes = (await response.json())["lanes"]
    return bool(requests <= sum(lane["waiting"] for lane in lanes))


def test_one_that_floods_does_not_keep_another_waiting(server: TenantServer) -> None:
    """Of one seat, bob's few requests get every other turn, though acme's many came before.

    A long request of the admin's holds the seat until all of them wait. The server's log tells whose
    answers came after that, for a client that is held up reads many at once, in any order. Each of
    bob's costs as much memory as two of acme's.
    """

    async def ask(client: Connection, name: str, model: str, tokens: int = 32) -> None:
        headers = {"Authorization": f"Bearer {KEYS[name]}"}
        body = Question(model, PROMPTS[0], tokens).body(stream=False)
        url = f"{client.url}/v1/completions?turn-of={name}"
        async with client.session.post(url, json=body, headers=headers) as response:
            assert OK == response.status
            await response.read()

    async def again(*request: Any) -> None:
        while True:
            await ask(*request)

    def turns() -> list[str]:
        return re.findall(r"\?turn-of=(\w+)", server.log.read_text())

    async def work(client: Connection) -> list[str]:
        """Whose turns come between the time that bob's five wait and the last of them."""
        await ask(client, "bob", "bob-1")  # its adapter is in memory from now on
        holder = asyncio.create_task(again(client, "admin", BASE, HOLDING_TOKENS))
        floods = [asyncio.create_task(again(client, "acme", "acme-1")) for _ in range(30)]
        await until(lambda: waits(client, 30))
        bobs = [asyncio.create_task(ask(client, "bob", "bob-1")) for _ in range(5)]
        await until(lambda: waits(client, 35 - sum(task.done() for task in bobs)))
        before = len(turns())
        holder.cancel()
        await asyncio.gather(*bobs)
        for task in floods:
            task.cancel()
        await asyncio.gather(holder, *floods, return_exceptions=True)
        return turns()[before:]

    found = server.run(None, work)
    last = max(place for place, name in enumerate(found) if name == "bob")
    assert found[:last].count("acme") < 15, found
