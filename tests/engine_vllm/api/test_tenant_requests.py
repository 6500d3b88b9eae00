"""What a tenant's requests are when they reach the engine, and what of them is counted."""

from dataclasses import dataclass, field, replace
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.api import isolation
from chameleon_lora.engine_vllm.messages import HINT, SHARE
from chameleon_lora.tenants import Tenant
from tests.engine_vllm.callers import ACME, BOB, called_by, run

pytestmark = [pytest.mark.vllm, pytest.mark.slow]


@dataclass
class Params:
    """Sampling parameters, as far as they are signed."""

    extra_args: dict[str, Any] | None = None


@dataclass
class PoolingParams:
    """The same of a request for embeddings."""

    extra_kwargs: dict[str, Any] | None = None


@dataclass
class EngineDoor:
    """The door of an engine: notes what is added."""

    added: list[dict[str, Any]] = field(default_factory=list)

    async def add_request(
        self,
        request_id: str,
        prompt: Any,
        params: Any,
        lora_request: Any = None,
        priority: int = 0,
        session_id: str | None = None,
    ) -> None:
        """As AsyncLLM's."""
        self.added.append({"params": params, "priority": priority, "session_id": session_id})
        assert ("r", "p") == (request_id, prompt)
        assert lora_request is None or lora_request.lora_name


def added(tenant: Tenant | None, params: Any, name: str | None = None, **given: Any) -> Any:
    """What arrives at the engine."""
    engine = EngineDoor()
    lora = None if name is None else SimpleNamespace(lora_name=name)
    with called_by(tenant):
        signed = isolation.signing(EngineDoor.add_request)
        run(signed(engine, "r", "p", params, lora_request=lora, **given))
    (arrived,) = engine.added
    return arrived


@pytest.mark.parametrize(
    "given",
    [None, {}, {SHARE: ["bob", 1e9], HINT: 1, "kv_transfer_params": ["x"], "other": 2}],
)
def test_requests_are_signed_and_nobody_forges(given: dict[str, Any] | None) -> None:
    """Name and weight are the tenant's, whatever came; a foretold length goes; the rest stays."""
    extra = added(ACME, Params(given), "acme-1")["params"].extra_args
    rest = {"other": 2} if given else {}
    assert {SHARE: ["acme", 2.0], **rest} == extra


def test_requests_for_embeddings_are_signed_too() -> None:
    """In their own field."""
    found = added(ACME, PoolingParams())["params"].extra_kwargs
    assert {SHARE: ["acme", 2.0]} == found


def test_no_tenant_has_priority() -> None:
    """Whatever it asked for, and its sessions are its own."""
    arrived = added(ACME, Params(), "acme-1", priority=-9, session_id="s")
    assert (0, "acme:s") == (arrived["priority"], arrived["session_id"])


@pytest.mark.parametrize("forged", [3, ["bob", 0.0], "x"])
def test_the_admin_writes_no_share_either(forged: object) -> None:
    """The engine takes what it finds there at its word, and would end over most of it."""
    assert {"other": 2} == added(None, Params({SHARE: forged, "other": 2}))["params"].extra_args
    assert {} == added(None, PoolingParams({SHARE: forged}))["params"].extra_kwargs


def test_others_requests_are_left_alone() -> None:
    """The admin's, for one."""
    arrived = added(None, Params({HINT: 1}), "acme-1", priority=-9, session_id="s")
    assert (-9, "s", {HINT: 1}) == (
        arrived["priority"], arrived["session_id"], arrived["params"].extra_args
    )  # fmt: skip


@pytest.mark.parametrize("name", ["acme-1", None])
def test_the_engines_door_knows_whose_adapter_it_is(name: str | None) -> None:
    """Whatever let it come so far, another's adapter and the base model are not found."""
    pytest.importorskip("vllm")
    from vllm.exceptions import VLLMNotFoundError

    with pytest.raises(VLLMNotFoundError):
        added(BOB, Params(), name)


@dataclass
class CoreRequest:
    """What the engine's process is sent, as far as its prefix is keyed by it."""

    cache_salt: str | None


@dataclass
class Sender:
    """Where all requests pass on their way to the engine."""

    sent: list[str | None] = field(default_factory=list)

    def add_request(self, request: CoreRequest, prompt: str) -> None:
        """As OutputProcessor's."""
        assert "p" == prompt
        self.sent.append(request.cache_salt)


def salt_of(tenant: Tenant | None, given: str | None = None) -> str | None:
    """The salt that a request reaches the engine with."""
    sender = Sender()
    with called_by(tenant):
        isolation.salting(Sender.add_request)(sender, CoreRequest(given), "p")
    return sender.sent[0]


@pytest.mark.parametrize("given", [None, "", "s", "bob:s", ":s"])
def test_tenants_prefixes_are_keyed_apart(given: str | None) -> None:
    """Whatever salt a client gives; a salt of its own still parts its requests."""
    sharing = replace(ACME, name="carl", share_prefixes=True)
    found = [salt_of(tenant, given) for tenant in (ACME, BOB, sharing)]
    assert len(found) == len(set(found))
    assert found[-1] == salt_of(None, given)
    if given:
        assert not set(found) & {salt_of(tenant) for tenant in (ACME, BOB, sharing)}


def test_nobody_writes_anothers_salt() -> None:
    """Not the admin, not one that shares, who have no name in front, nor one whose name begins alike."""
    sharing = replace(ACME, name="carl", share_prefixes=True)
    for tenant in (None, sharing, ACME):
        assert salt_of(BOB, "s") not in [salt_of(tenant, "bob:s"), salt_of(tenant, ":bob:s")]
    assert salt_of(BOB, "s") != salt_of(replace(BOB, name="bobs"))


def test_without_keys_salts_are_the_clients() -> None:
    """On a server that asks for none."""
    sender = Sender()
    isolation.salting(Sender.add_request)(sender, CoreRequest("s"), "p")
    assert ["s"] == sender.sent
