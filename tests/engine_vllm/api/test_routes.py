"""Chameleon's routes, over a real driver behind a server's own border."""

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import msgspec
import pytest

from chameleon_lora.engine_vllm import messages
from chameleon_lora.engine_vllm.api import routes
from chameleon_lora.engine_vllm.api.caller import CALLER, CallerContext
from chameleon_lora.engine_vllm.api.refusals import Refusals
from chameleon_lora.engine_vllm.core import utilities
from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.core.state import state_of
from tests.engine_vllm.asgi_client import AppAnswer, ask
from tests.engine_vllm.fake_requests import announced, carry_out, make_driver, request_for

fastapi = pytest.importorskip("fastapi")
PlainTextResponse = pytest.importorskip("fastapi.responses").PlainTextResponse
OK, BAD_REQUEST, UNAUTHORIZED, NOT_FOUND, UNAVAILABLE = 200, 400, 401, 404, 503


UTILITIES: dict[str, Callable[..., Any]] = {
    messages.STATE: utilities.state,
    messages.METRICS: utilities.metrics,
    messages.ARRIVALS: utilities.arrivals,
    messages.PIN: utilities.pin,
}


def engine_of(driver: Driver | None) -> Any:
    """As much of an EngineCore as the utilities read; without a driver, another scheduler's."""
    config = SimpleNamespace(lora_config=None)
    return SimpleNamespace(scheduler=SimpleNamespace(chameleon=driver), vllm_config=config)


@dataclass
class FakeCore:
    """The engine's client: carries questions to a real driver and answers back as msgpack."""

    driver: Driver = field(default_factory=make_driver)

    async def call_utility_async(self, method: str, *arguments: Any) -> Any:
        """What EngineCore answers."""
        answer = UTILITIES[method](engine_of(self.driver), *arguments)
        return msgspec.msgpack.decode(msgspec.msgpack.encode(answer))


@dataclass
class FakeRegistry:
    """What an API server knows of a folder: names that came, and names it refuses."""

    models: Any
    late: dict[str, Any] = field(default_factory=dict)
    refused: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self.refusals = Refusals(self.models)
        self.refusals.refused = self.refused

    async def refresh(self, name: str) -> None:
        """Offer it if its folder has just come."""
        self.models.lora_requests.update({n: r for n, r in self.late.items() if n == name})


@dataclass
class RoutesServer:
    """An app with Chameleon's routes, whose models have no registry."""

    can_change: bool = True
    core: Any = field(default_factory=FakeCore)

    def __post_init__(self) -> None:
        self.models = SimpleNamespace(lora_requests={}, is_base_model=lambda _: False)
        self.app = fastapi.FastAPI()
        self.app.state.engine_client = SimpleNamespace(engine_core=self.core)
        self.app.state.openai_serving_models = self.models
        routes.attach(self.app, can_change=self.can_change)

    def serve(self, name: str) -> None:
        """Offer an adapter to the engine and to clients."""
        self.core.driver.announce(announced(name))
        self.models.lora_requests[name] = object()

    def pin(self, name: str, verb: str = "pin") -> AppAnswer:
        """POST the name to one of the two routes."""
        body = json.dumps({"lora_name": name}).encode()
        return ask(self.app, "POST", f"/v1/{verb}_lora_adapter", body)

    def state(self) -> Any:
        """GET /chameleon/state."""
        return json.loads(ask(self.app, "GET", "/chameleon/state").text)

    def is_pinned(self, name: str) -> bool:
        """What the policy holds of it."""
        version = self.core.driver.versions.current(name)
        assert version is not None
        return bool(self.core.driver.policy.adapter(version.id).is_pinned)


def error_of(answer: AppAnswer) -> tuple[int, str, str]:
    """Status, type and message of an error in OpenAI's form, whose code is the status."""
    error = json.loads(answer.text)["error"]
    assert answer.status == error["code"]
    return answer.status, error["type"], error["message"]


def test_the_state_is_the_engines() -> None:
    """As JSON, all of it."""
    server = RoutesServer()
    server.serve("a")
    driver = server.core.driver
    driver.arrived(request_for("1", driver.versions.current("a")))
    carry_out(driver, 1.0)
    backend = {
        "kind": "slots",
        "why": "there are no adapters",
    }  # the configuration's, not the driver's
    expected = state_of(driver) | {"lora_backend": backend, "refused": []}
    assert expected == server.state()


def test_what_the_engine_was_never_told_of_is_in_state_and_metrics() -> None:
    """Adapters that are refused, with their reasons: at most a thousand; the metric counts all."""
    server = RoutesServer()
    why = {f"a{number}": "no weights" for number in range(routes.MOST_REFUSED + 5)}
    server.models.chameleon_registry = FakeRegistry(server.models, refused=why)
    refused = server.state()["refused"]
    assert {"name": "a0", "reason": "no weights"} == refused[0]
    assert routes.MOST_REFUSED == len(refused)
    server.app.add_api_route("/metrics", lambda: PlainTextResponse("# EOF\n"))
    page = ask(server.app, "GET", "/metrics").text
    assert f"chameleon:adapters_refused {float(len(why))}" in page


def test_pinning_and_unpinning_reach_the_policy() -> None:
    """With vLLM's words for success."""
    server = RoutesServer()
    server.serve("a")
    answer = server.pin("a")
    assert (OK, "Success: LoRA adapter 'a' pinned successfully.") == (answer.status, answer.text)
    assert server.is_pinned("a")
    answer = server.pin("a", "unpin")
    assert (OK, "Success: LoRA adapter 'a' unpinned successfully.") == (answer.status, answer.text)
    assert not server.is_pinned("a")


@pytest.mark.parametrize("verb", ["pin", "unpin"])
def test_an_unknown_name_is_not_found(verb: str) -> None:
    """404 in OpenAI's form, with vLLM's words."""
    expected = (NOT_FOUND, "NotFoundError", "The lora adapter 'nobody' cannot be found.")
    assert expected == error_of(RoutesServer().pin("nobody", verb))


@pytest.mark.parametrize("name", ["\ud800", "a\0", "x" * 10_000, "a\r\nINFO all is well"])
def test_a_hostile_name_is_not_found(name: str) -> None:
    """The same 404, whose message is short and can be printed and sent."""
    status, kind, message = error_of(RoutesServer().pin(name))
    assert (NOT_FOUND, "NotFoundError") == (status, kind)
    assert message.isprintable()
    assert len(message) < 200


@pytest.mark.parametrize("after", ["-1", "9223372036854775808", "1" * 5000, "x", "1e3", "NaN"])
def test_arrivals_after_no_number_of_any_are_refused(after: str) -> None:
    """Before the engine is asked (with 400 on vLLM's server)."""
    server = RoutesServer()
    server.core.driver = None
    answer = ask(server.app, "GET", f"/chameleon/arrivals?after={after}")
    assert answer.status in (BAD_REQUEST, 422)
    assert "query" in answer.text


def test_an_empty_name_is_a_bad_request() -> None:
    """The field is named."""
    status, kind, message = error_of(RoutesServer().pin(""))
    assert (BAD_REQUEST, "InvalidUserInput") == (status, kind)
    assert "'lora_name'" in message


@pytest.mark.parametrize("body", [b"{}", b'{"lora_name": 3}', b"[]", b"{"])
def test_a_body_without_a_name_changes_nothing(body: bytes) -> None:
    """It is refused before the engine is asked (with 400 on vLLM's server, see the live test)."""
    server = RoutesServer()
    server.core.driver = None
    assert ask(server.app, "POST", "/v1/pin_lora_adapter", body).status in (BAD_REQUEST, 422)


def test_what_the_engine_refuses_is_a_bad_request_with_its_reason() -> None:
    """A name that the API server knows and the engine does not."""
    server = RoutesServer()
    server.models.lora_requests["a"] = object()
    status, kind, message = error_of(server.pin("a"))
    assert (BAD_REQUEST, "BadRequestError") == (status, kind)
    assert message == server.core.driver.pin("a", True)


def test_a_folder_that_has_just_come_can_be_pinned() -> None:
    """As its first request would find it."""
    server = RoutesServer()
    server.models.chameleon_registry = FakeRegistry(server.models, late={"a": object()})
    server.core.driver.announce(announced("a"))
    assert OK == server.pin("a").status


def test_an_adapter_that_is_not_served_is_refused_with_its_reason() -> None:
    """400, as for a request that names it."""
    server = RoutesServer()
    server.models.chameleon_registry = FakeRegistry(
        server.models, refused={"a": "adapter 'a': no weights"}
    )
    assert (BAD_REQUEST, "BadRequestError", "adapter 'a': no weights") == error_of(server.pin("a"))


@pytest.mark.parametrize(
    ("method", "path"),
    [
        ("GET", routes.STATE_PATH),
        ("GET", routes.ARRIVALS_PATH),
        ("POST", "/v1/pin_lora_adapter"),
        ("POST", "/v1/unpin_lora_adapter"),
    ],
)
def test_a_caller_that_controls_nothing_is_refused_by_the_route_itself(
    method: str, path: str
) -> None:
    """Whatever way it came by; one that controls gets in."""
    server = RoutesServer()
    for may_control, expected in ((False, UNAUTHORIZED), (True, OK)):
        token = CALLER.set(CallerContext(None, may_control))
        try:
            server.core.driver.announce(announced("a"))
            server.models.lora_requests["a"] = object()
            answer = ask(server.app, method, path, b'{"lora_name": "a"}')
        finally:
            CALLER.reset(token)
        assert expected == answer.status, answer.text


def test_without_runtime_updating_nobody_pins() -> None:
    """The routes are absent, as vLLM's load and unload are; the state stays."""
    server = RoutesServer(can_change=False)
    server.serve("a")
    assert [NOT_FOUND, NOT_FOUND] == [server.pin("a", verb).status for verb in ("pin", "unpin")]
    assert [] == server.state()["adapters"]


class SilentCore:
    """An engine that never answers."""

    async def call_utility_async(self, *_: Any) -> Any:
        """As after the time limit."""
        raise TimeoutError


def test_a_silent_engine_is_unavailable() -> None:
    """503 rather than a client that waits for ever."""
    server = RoutesServer(core=SilentCore())
    assert UNAVAILABLE == error_of(ask(server.app, "GET", "/chameleon/state"))[0]


def test_another_schedulers_engine_has_nothing_to_tell() -> None:
    """No state, no numbers, no arrivals, and a reason why nothing was pinned."""
    engine = engine_of(None)
    assert [None, None] == [utilities.state(engine), utilities.metrics(engine)]
    assert utilities.arrivals(engine, 0) is None
    assert "" != utilities.pin(engine, "a", is_pinned=True)
