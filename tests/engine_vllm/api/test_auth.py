"""Who gets in at the door of an API server, and what is sent on."""

import asyncio
import json
import logging
from collections.abc import MutableMapping
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.engine_vllm.api.auth import AuthMiddleware
from chameleon_lora.engine_vllm.api.caller import CALLER
from tests.engine_vllm.asgi_client import AppAnswer, ask
from tests.engine_vllm.tenant_settings import (
    ACME,
    ADMIN,
    BOB,
    LIMITS,
    SCAN_S,
    GuardedApp,
    tenants_text,
)

fastapi = pytest.importorskip("fastapi")
OK, BAD_REQUEST, UNAUTHORIZED, NOT_FOUND, TOO_MANY = 200, 400, 401, 404, 429
CONTROLS = [
    *(("POST", f"/v1/{verb}_lora_adapter") for verb in ("load", "unload", "pin", "unpin")),
    ("POST", "/adapters"),
    ("DELETE", "/adapters/a"),
]
PAGES = [("GET", "/chameleon/state"), ("GET", "/chameleon/arrivals")]
OTHERS = [("GET", "/metrics"), ("GET", "/docs"), ("POST", "/sleep"), ("POST", "/invocations")]
ASKING = ["/v1/completions", "/v1/chat/completions", "/v1/responses", "/v1/messages", "/tokenize"]


@pytest.fixture
def file(tmp_path: Path) -> Path:
    """A file of two tenants."""
    path = tmp_path / "tenants.toml"
    path.write_text(tenants_text())
    return path


def error_of(answer: AppAnswer) -> dict[str, Any]:
    """The error of a refusal, whose status it repeats."""
    error = json.loads(answer.text)["error"]
    assert answer.status == error["code"]
    assert isinstance(error, dict)
    return error


@pytest.mark.parametrize(("method", "path"), [*CONTROLS, *PAGES])
def test_with_an_admin_key_control_routes_need_it(method: str, path: str) -> None:
    """Nobody and a wrong key get 401, the admin gets in; nothing else reaches the server."""
    app = GuardedApp.build()
    for key in (None, "another-key-01234"):
        answer = app.ask(method, path, key)
        assert "AuthenticationError" == error_of(answer)["type"]
        assert (UNAUTHORIZED, "Bearer") == (answer.status, answer.headers["www-authenticate"])
    assert OK == app.ask(method, path, ADMIN).status
    assert 1 == len(app.behind.seen)


@pytest.mark.parametrize("method", ["GET", "HEAD", "POST", "DELETE"])
@pytest.mark.parametrize("end", ["\n", ""])
@pytest.mark.parametrize("root", ["", "/", "/api", "/api/"])
def test_no_spelling_of_a_control_route_goes_without_the_key(
    method: str, end: str, root: str
) -> None:
    """vLLM's router takes a path that ends in a newline too, and knows what is below a root path."""
    app = fastapi.FastAPI()
    reached: list[str] = []
    for route_method, path in (*CONTROLS, *PAGES):
        app.add_api_route(path, lambda: reached.append("a"), methods=[route_method])
    middleware = AuthMiddleware(app, GuardedApp.build().keys, lambda: 1)
    for _, path in (*CONTROLS, *PAGES):
        for start in ("", "/", root, root.rstrip("/")):
            assert OK != ask(middleware, method, start + path + end, root_path=root).status
    assert [] == reached


@pytest.mark.parametrize(("method", "path"), CONTROLS)
def test_a_control_route_that_is_off_stays_unknown(method: str, path: str) -> None:
    """Without runtime updating the server itself answers, with its 404."""
    assert OK == GuardedApp.build(has_controls=False).ask(method, path).status


@pytest.mark.parametrize(("method", "path"), [*OTHERS, ("POST", "/v1/completions")])
def test_with_an_admin_key_alone_other_routes_stay_open(method: str, path: str) -> None:
    """As without it; but such a caller controls nothing, by whatever route."""
    app = GuardedApp.build()
    assert OK == app.ask(method, path).status
    (caller,) = app.behind.callers
    assert caller is not None
    assert not caller.may_control


def test_the_admin_key_opens_what_the_servers_own_key_opens() -> None:
    """The admin's header is exchanged for it; others' headers go on as they came."""
    app = GuardedApp.build(server_key="the-servers")
    app.ask("POST", "/v1/load_lora_adapter", ADMIN)
    app.ask("POST", "/v1/completions", "mine")
    keys = [seen["headers"]["authorization"] for seen in app.behind.seen]
    assert ["Bearer the-servers", "Bearer mine"] == keys


@pytest.mark.parametrize("path", ["/health", "/ping", "/version"])
def test_probes_need_no_key(file: Path, path: str) -> None:
    """Also with tenants."""
    assert OK == GuardedApp.build(file).ask("GET", path).status


@pytest.mark.parametrize("key", [None, "another-key-01234", ACME[:-1], ADMIN[:-1]])
@pytest.mark.parametrize("path", ["/v1/models", *ASKING, "/metrics", "/docs", "/nothing"])
def test_with_tenants_all_else_needs_a_key(file: Path, path: str, key: str | None) -> None:
    """401 in OpenAI's form, whether the path exists or not."""
    app = GuardedApp.build(file)
    for method in ("GET", "POST"):
        assert UNAUTHORIZED == error_of(app.ask(method, path, key))["code"]
    assert [] == app.behind.seen


@pytest.mark.parametrize(("method", "path"), [*CONTROLS, *PAGES, ("GET", "/metrics")])
def test_control_and_metrics_are_for_the_admin(file: Path, method: str, path: str) -> None:
    """A tenant gets 401, the admin gets in."""
    app = GuardedApp.build(file)
    assert "admin" in error_of(app.ask(method, path, ACME))["message"]
    assert OK == app.ask(method, path, ADMIN).status


def test_without_an_admin_key_they_are_for_nobody(file: Path) -> None:
    """With tenants, no key at all opens them."""
    app = GuardedApp.build(file, admin=None)
    for key in (None, ACME, ADMIN):
        assert UNAUTHORIZED == app.ask("GET", "/metrics", key).status
        assert UNAUTHORIZED == app.ask("POST", "/v1/load_lora_adapter", key).status


@pytest.mark.parametrize(
    ("method", "path"),
    [
        *(("POST", "/sleep"), ("POST", "/collective_rpc"), ("POST", "/invocations")),
        *(("GET", "/v1/responses/resp_1"), ("POST", "/v1/responses/resp_1/cancel")),
        *(("POST", "/v1/audio/transcriptions"), ("GET", "/docs"), ("GET", "/openapi.json")),
        *(("GET", "/v1/completions"), ("POST", "/v1/models"), ("POST", "/v1/completions/")),
        *(("POST", "//v1/completions"), ("GET", "/load"), ("POST", "/inference/v1/generate")),
        *(("POST", "/V1/completions"), ("POST", "/v1/completions%0A"), ("HEAD", "/v1/models")),
        *(("POST", "/v1/./completions"), ("POST", "/v1%2Fcompletions"), ("post", "/tokenize")),
        *(("GET", "/v1/models/"), ("GET", "/v1/models/acme-1"), ("GET", "/v1/models/bob-1")),
        *(
            ("GET", "/metrics/"),
            ("GET", "/metricsx"),
            ("HEAD", "/docs"),
            ("GET", "/kv_event_sources"),
        ),
        *(("OPTIONS", "/docs"), ("OPTIONS", "/v1/responses/resp_1"), ("OPTIONS", "/metrics/")),
        *(("POST", "/abort_requests"), ("POST", "/inference/v1/abort_requests")),
        *(("POST", "/v1/chat/completions/batch"), ("POST", "/v1/chat/completions/render")),
        *(("POST", "/v1/systemone"), ("POST", "/generative_scoring"), ("POST", "/v2/embed")),
    ],
)
def test_no_other_route_is_a_tenants(file: Path, method: str, path: str) -> None:
    """404, as if it were not there."""
    app = GuardedApp.build(file)
    assert NOT_FOUND == error_of(app.ask(method, path, ACME, {"model": "acme-1"}))["code"]
    assert [] == app.behind.seen


def test_a_request_carries_its_tenant(file: Path) -> None:
    """What runs for it knows whose it is; after it, nobody asks."""
    app = GuardedApp.build(file)
    for key in (ACME, BOB, ADMIN):
        app.complete(key)
    app.ask("GET", "/v1/models", BOB)
    callers = [caller for caller in app.behind.callers if caller is not None]
    tenants = [caller.tenant and caller.tenant.name for caller in callers]
    assert ["acme", "bob", None, "bob"] == tenants
    assert [False, False, True, False] == [caller.may_control for caller in callers]


def test_a_body_goes_on_without_what_disturbs_others(file: Path) -> None:
    """Priority and chosen ids are dropped; the rest is the same, its length told anew."""
    app = GuardedApp.build(file)
    app.complete(ACME, prompt="h\u00e9", priority=-5, request_id="mine", n=2)
    (seen,) = app.behind.seen
    assert {"model": "acme-1", "prompt": "h\u00e9", "n": 2} == json.loads(seen["body"])
    assert str(len(seen["body"])) == seen["headers"]["content-length"]


def test_a_name_given_twice_is_the_one_that_was_looked_at(file: Path) -> None:
    """However another parser would read such a body, it gets one name only."""
    app = GuardedApp.build(file)
    app.ask("POST", "/v1/completions", ACME, b'{"model": "acme-1", "model": "bob-1"}')
    assert '{"model": "bob-1"}' == app.behind.seen[0]["body"]


def test_a_requests_id_is_the_tenants_own(file: Path) -> None:
    """Two tenants that choose one id do not meet; no name of a tenant holds what joins the two."""
    app = GuardedApp.build(file)
    for key in (ACME, BOB):
        app.ask("POST", "/tokenize", key, {}, X_Request_Id="1")
    ids = [seen["headers"]["x-request-id"] for seen in app.behind.seen]
    assert ["acme:1", "bob:1"] == ids


def test_a_tenant_is_not_told_how_full_the_engine_is(file: Path) -> None:
    """vLLM answers that header with the load of all."""
    app = GuardedApp.build(file)
    app.ask("POST", "/v1/completions", ACME, {}, endpoint_load_metrics_format="JSON", x_other="1")
    headers = app.behind.seen[0]["headers"]
    assert (False, "1") == ("endpoint-load-metrics-format" in headers, headers["x-other"])


@pytest.mark.parametrize("field", ["previous_response_id", "kv_transfer_params", "background"])
def test_what_reaches_beyond_one_request_is_refused(file: Path, field: str) -> None:
    """400, naming the field; null is as good as absent."""
    app = GuardedApp.build(file)
    assert field in error_of(app.complete(ACME, **{field: "resp_1"}))["message"]
    assert OK == app.complete(ACME, **{field: None}).status


@pytest.mark.parametrize(
    "body", [b"", b"{", b"[]", b"3", b"\xff\xfe", b"[" * 100_000, b'{"a": ' + b"1" * 5000 + b"}"]
)
def test_a_body_that_is_no_object_is_a_bad_request(file: Path, body: bytes) -> None:
    """400 in OpenAI's form, for whatever bytes."""
    answer = GuardedApp.build(file).ask("POST", "/v1/completions", ACME, body)
    assert "BadRequestError" == error_of(answer)["type"]


def test_no_depth_of_a_body_fails_the_middleware(file: Path) -> None:
    """What can be read but not written again is refused as what cannot be read."""
    app = GuardedApp.build(file)
    found = set()
    for depth in range(0, 1200, 3):
        body = b'{"model": "acme-1", "a": ' + b"[" * depth + b"]" * depth + b"}"
        found.add(app.ask("POST", "/v1/completions", ACME, body).status)
    assert {OK, BAD_REQUEST} == found


def test_a_changed_file_holds_from_the_next_look(file: Path) -> None:
    """A key that was taken out opens nothing once the file is looked at again."""
    app = GuardedApp.build(file)
    assert OK == app.complete(BOB).status
    file.write_text(tenants_text().partition("[tenants.bob]")[0])
    app.now_s = SCAN_S
    assert UNAUTHORIZED == app.complete(BOB).status
    assert OK == app.complete(ACME).status


def test_a_tenant_that_was_taken_out_begins_anew(file: Path) -> None:
    """What it had used is forgotten with it."""
    file.write_text(tenants_text(LIMITS))
    app = GuardedApp.build(file)
    app.behind.uses = (0, 600)
    assert OK == app.complete(ACME, max_tokens=600).status
    assert TOO_MANY == app.complete(ACME, max_tokens=600).status
    file.write_text("[tenants.bob]" + tenants_text().partition("[tenants.bob]")[2])
    app.now_s += SCAN_S
    assert OK == app.complete(BOB).status
    file.write_text(tenants_text(LIMITS))
    app.now_s += SCAN_S
    assert OK == app.complete(ACME, max_tokens=600).status


def test_after_a_request_nobody_asks(file: Path) -> None:
    """Whatever runs next in the same task is nobody's."""
    app = GuardedApp.build(file)

    async def ask_once() -> object:
        async def send(_: MutableMapping[str, Any]) -> None: ...

        async def receive() -> MutableMapping[str, Any]:
            return {"type": "http.request", "body": b""}

        headers = [(b"authorization", f"Bearer {ACME}".encode())]
        scope = {"type": "http", "method": "GET", "path": "/v1/models", "headers": headers}
        await app.middleware(scope, receive, send)
        return CALLER.get()

    assert asyncio.run(ask_once()) is None
    assert app.behind.callers[0] is not None


def test_two_keys_at_once_are_none(file: Path) -> None:
    """So that nobody reads another one of them than the middleware did."""
    answer = GuardedApp.build(file).ask(
        "POST", "/v1/completions", ACME, {"model": "acme-1"}, Authorization=f"Bearer {ADMIN}"
    )
    assert UNAUTHORIZED == answer.status


@pytest.mark.parametrize("path", ["/v1/completions", "/v1/models", "/health"])
def test_preflight_requests_pass(file: Path, path: str) -> None:
    """Browsers send no key with OPTIONS; vLLM's own check lets them pass too."""
    app = GuardedApp.build(file)
    assert OK == app.ask("OPTIONS", path).status
    (caller,) = app.behind.callers
    assert caller is not None
    assert not caller.may_control


@pytest.mark.parametrize("path", ["/metrics", "/metrics/", "/docs", "/chameleon/state", "/nothing"])
def test_a_page_is_not_read_by_another_method(file: Path, path: str) -> None:
    """The metrics page answers every method with the names of all adapters, OPTIONS too."""
    app = GuardedApp.build(file)
    for method in ("OPTIONS", "HEAD", "PUT", "options"):
        assert UNAUTHORIZED == app.ask(method, path).status
    assert [] == app.behind.seen


@pytest.mark.parametrize(("key", "is_closed"), [(None, True), (ACME, True), (ADMIN, False)])
def test_websockets_are_for_the_admin(file: Path, key: str | None, is_closed: bool) -> None:
    """With tenants, others are closed before they are accepted."""
    app = GuardedApp.build(file)
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "websocket.connect", "body": b""}

    headers = [] if key is None else [(b"authorization", f"Bearer {key}".encode())]
    scope = {"type": "websocket", "path": "/v1/realtime", "headers": headers}
    asyncio.run(app.middleware(scope, receive, send))
    assert is_closed is (["websocket.close"] == [message["type"] for message in sent])


def test_a_client_that_goes_while_sending_costs_nothing(file: Path) -> None:
    """Nothing is answered, and nothing reaches the server."""
    app = GuardedApp.build(file)
    sent: list[MutableMapping[str, Any]] = []

    async def send(message: MutableMapping[str, Any]) -> None:
        sent.append(message)

    async def receive() -> MutableMapping[str, Any]:
        return {"type": "http.disconnect"}

    scope = {
        "type": "http", "method": "POST", "path": "/v1/completions",
        "headers": [(b"authorization", f"Bearer {ACME}".encode())],
    }  # fmt: skip
    asyncio.run(app.middleware(scope, receive, send))
    assert ([], []) == (sent, app.behind.seen)


def test_no_key_is_logged(file: Path, caplog: pytest.LogCaptureFixture) -> None:
    """Whether it opens anything or not, at the lowest level."""
    caplog.set_level(logging.DEBUG, "vllm.chameleon_lora")
    app = GuardedApp.build(file)
    keys = (ACME, ADMIN, "another-key-01234")
    assert [OK, UNAUTHORIZED, UNAUTHORIZED] == [
        app.ask(*route, key).status
        for route, key in zip((("GET", "/v1/models"), *PAGES), (ACME, BOB, keys[-1]), strict=True)
    ]
    file.write_text(f"[tenants.acme]\nkeys = ['{ACME}']")
    app.now_s = 2 * SCAN_S
    assert OK == app.ask("GET", "/chameleon/state", ADMIN).status
    assert OK == app.ask("GET", "/v1/models", ACME).status
    assert "what was read before stays" in caplog.text
    assert not any(key in caplog.text for key in (*keys, BOB))
