"""What a tenant's requests are when they reach the engine, and what of them is counted."""

import asyncio
from collections.abc import AsyncIterator
from dataclasses import dataclass, field, replace
from enum import Enum
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
class Engine:
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
    engine = Engine()
    lora = None if name is None else SimpleNamespace(lora_name=name)
    with called_by(tenant):
        signed = isolation.signing(Engine.add_request)
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
    assert (0, "acme.s") == (arrived["priority"], arrived["session_id"])


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


class Kind(Enum):
    """What an output holds."""

    CUMULATIVE = 0
    DELTA = 1


@dataclass
class Outputs:
    """A stream of outputs, each a prompt and some answers by index."""

    steps: list[dict[int, int]]

    async def generate(self, prompt: Any, sampling_params: Any) -> AsyncIterator[Any]:
        """As AsyncLLM's; the last one is finished."""
        for number, lengths in enumerate(self.steps, 1):
            yield SimpleNamespace(
                prompt_token_ids=prompt,
                outputs=[SimpleNamespace(index=i, token_ids=[0] * n) for i, n in lengths.items()],
                finished=number == len(self.steps),
                params=sampling_params,
            )


def counted(
    steps: list[dict[int, int]], kind: Kind, *, taken: int, is_named: bool = False
) -> tuple[int, int, int]:
    """Input and output tokens counted, and answers unfinished, after so many outputs."""

    async def read() -> None:
        stream = isolation.counting(Outputs.generate)
        params = SimpleNamespace(output_kind=kind)
        named = {"sampling_params": params} if is_named else {}
        outputs = stream(Outputs(steps), [1, 2, 3], *([] if is_named else [params]), **named)
        for _ in range(taken):
            await anext(outputs)
        if taken == len(steps):
            with pytest.raises(StopAsyncIteration):
                await anext(outputs)
        await outputs.aclose()

    with called_by(ACME) as caller:
        asyncio.run(read())
    return caller.input_tokens, caller.output_tokens, caller.unfinished


@pytest.mark.parametrize(
    ("steps", "kind"),
    [
        ([{0: 1}, {0: 4}], Kind.DELTA),
        ([{0: 1}, {0: 5}], Kind.CUMULATIVE),
        ([{0: 5}], Kind.CUMULATIVE),
        ([{0: 1, 1: 2}, {1: 2}], Kind.DELTA),
        ([{0: 1, 1: 2}, {1: 4}], Kind.CUMULATIVE),
    ],
)
@pytest.mark.parametrize("is_named", [False, True])
def test_what_was_read_and_written_is_counted(
    steps: list[dict[int, int]], kind: Kind, *, is_named: bool
) -> None:
    """The prompt once, each answer's tokens once, in whatever pieces they come."""
    assert (3, 5, 0) == counted(steps, kind, taken=len(steps), is_named=is_named)


def test_an_answer_that_is_left_stays_unfinished() -> None:
    """What came before counts."""
    assert (3, 1, 1) == counted([{0: 1}, {0: 4}], Kind.DELTA, taken=1)


@pytest.mark.parametrize("outputs", [0, 1])
def test_a_request_that_is_refused_leaves_nothing_unfinished(outputs: int) -> None:
    """Only one that had an answer begun: it counts as charged."""

    async def generate(_: Any, prompt: Any, params: Any) -> AsyncIterator[Any]:
        for _number in range(outputs):
            yield SimpleNamespace(prompt_token_ids=prompt, outputs=params, finished=False)
        raise ValueError(prompt)

    async def read() -> None:
        with pytest.raises(ValueError, match="7"):
            async for _output in isolation.counting(generate)(None, [7], None):
                pass

    with called_by(ACME) as caller:
        asyncio.run(read())
    assert outputs == caller.unfinished


@pytest.mark.parametrize("is_named", [False, True])
def test_vllm_calls_with_and_without_names(is_named: bool) -> None:
    """Requests for embeddings come with names only, and hold one output that is no list."""

    @dataclass
    class Pooling:
        async def encode(self, prompt: Any, pooling_params: Any) -> AsyncIterator[Any]:
            yield SimpleNamespace(prompt_token_ids=prompt, outputs=pooling_params, finished=True)

    async def read(stream: Any) -> int:
        names = ("prompt", "pooling_params")
        given = ([1, 2], PoolingParams())
        named = dict(zip(names, given, strict=True))
        outputs = stream(Pooling(), **named) if is_named else stream(Pooling(), *given)
        return len([output async for output in outputs])

    with called_by(ACME) as caller:
        assert 1 == asyncio.run(read(isolation.counting(Pooling.encode)))
    assert (2, 0, 0) == (caller.input_tokens, caller.output_tokens, caller.unfinished)


def test_nothing_is_counted_for_others() -> None:
    """They get the very stream."""
    with called_by(None):
        outputs = isolation.counting(Outputs.generate)(
            Outputs([{0: 1}]), [1], SimpleNamespace(output_kind=Kind.DELTA)
        )
    assert "generate" == outputs.__name__
