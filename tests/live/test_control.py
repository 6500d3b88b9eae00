"""Chameleon's routes and metrics on a real server."""

import json
import re
import shutil
from typing import Any

import pytest

from chameleon_lora import __version__
from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from faults.adapter_fixtures import SERVED, rank_of
from tests.live.client import OK, Connection, Question, state, until
from tests.live.servers import BASE, IN_SLOTS, SHARED, Server
from tests.live.stock import PROMPTS

pytestmark = [
    pytest.mark.vllm,
    pytest.mark.slow,
    pytest.mark.timeout(1800),
    pytest.mark.parametrize("server", [SHARED, IN_SLOTS], indirect=True, ids=["shared", "slots"]),
]
BAD_REQUEST, NOT_FOUND = 400, 404
LOADED = "vllm:lora_adapter_loaded"
ADAPTER_FIELDS = {
    *("name", "version", "rank", "bytes", "tier", "blocks", "is_promoting"),
    *("running", "queued", "is_pinned", "is_leaving", "slot"),
}
LANE_FIELDS = {
    *("lane", "waiting", "loading", "running", "quota_tokens", "used_tokens"),
    *("head", "head_adapter", "held", "why"),
}
Series = dict[tuple[str, frozenset[tuple[str, str]]], float]


async def pin(client: Connection, name: str, verb: str = "pin") -> tuple[int, str]:
    """POST to one of the two routes."""
    return await client.post(f"/v1/{verb}_lora_adapter", {"lora_name": name})


async def metrics(client: Connection) -> Series:
    """Each series of GET /metrics, as Prometheus's own parser reads it."""
    from prometheus_client.parser import text_string_to_metric_families

    status, text = await client.get("/metrics")
    assert OK == status
    return {
        (sample.name, frozenset(sample.labels.items())): sample.value
        for family in text_string_to_metric_families(text)
        for sample in family.samples
    }


def total(series: Series, name: str) -> float:
    """The sum over all series of a name."""
    return sum(value for (found, _), value in series.items() if found == name)


def test_the_state_shows_lanes_tiers_and_adapters(server: Server) -> None:
    """After a request its adapter is in a slot, or where it lies, with its rank; nobody waits."""

    async def ask_then_look(client: Connection) -> Any:
        await client.ask(Question(name, PROMPTS[0]))
        return await state(client)

    name = server.put(4)
    found = server.run(ask_then_look)
    slots, tier = (2, "slot") if server.setup is IN_SLOTS else (None, "host")
    assert (slots, SHARED.seats) == (found["slots"], found["seats"])
    assert found["kv_blocks"] > 0
    assert ["disk", "loading", "host", "device", "slot"] == list(found["tiers"])
    (adapter,) = (adapter for adapter in found["adapters"] if adapter["name"] == name)
    assert ADAPTER_FIELDS == adapter.keys()
    assert (rank_of(4), tier, False) == tuple(adapter[k] for k in ("rank", "tier", "is_pinned"))
    assert adapter["bytes"] > 0
    assert all(LANE_FIELDS == lane.keys() for lane in found["lanes"])
    assert 0 == sum(lane["waiting"] + lane["loading"] for lane in found["lanes"])


def test_a_pinned_adapter_is_in_memory_until_unpinned(server: Server) -> None:
    """The state and the metrics show the pin as soon as the route has answered."""

    async def pin_and_unpin(client: Connection) -> list[Any]:
        await client.ask(Question(name, PROMPTS[0]))
        answers: list[Any] = []
        for verb in ("pin", "unpin"):
            answers.append(await pin(client, name, verb))
            adapters = (await state(client))["adapters"]
            (is_pinned,) = (a["is_pinned"] for a in adapters if a["name"] == name)
            labels = [dict(pairs) for found, pairs in await metrics(client) if found == LOADED]
            (label,) = (pairs["pinned"] for pairs in labels if pairs["adapter_name"] == name)
            answers.append((is_pinned, label))
        return answers

    name = server.put(5)
    assert [
        (OK, f"Success: LoRA adapter '{name}' pinned successfully."),
        (True, "true"),
        (OK, f"Success: LoRA adapter '{name}' unpinned successfully."),
        (False, "false"),
    ] == server.run(pin_and_unpin)


def test_a_server_without_requests_reads_what_is_pinned_and_forgets_what_goes(
    server: Server,
) -> None:
    """Nobody ever asks for the adapter: its tier follows the pin, and its folder."""

    async def tier(client: Connection) -> str:
        adapters: dict[str, str] = {a["name"]: a["tier"] for a in (await state(client))["adapters"]}
        return adapters.get(name, "disk")

    async def pin_then_delete(client: Connection) -> None:
        assert OK == (await pin(client, name))[0]
        await until(lambda: has_tier(client, "host", "device"))
        shutil.rmtree(server.adapters / name)
        await until(lambda: has_tier(client, "disk"))

    async def has_tier(client: Connection, *tiers: str) -> bool:
        return await tier(client) in tiers

    name = server.put(6)
    server.run(pin_then_delete)


@pytest.mark.parametrize("name", ["nobody", BASE])
@pytest.mark.parametrize("verb", ["pin", "unpin"])
def test_only_adapters_can_be_pinned(server: Server, verb: str, name: str) -> None:
    """Any other name, the base model's too, gets 404 in OpenAI's form."""
    status, text = server.run(lambda client: pin(client, name, verb))
    assert NOT_FOUND == status
    error = json.loads(text)["error"]
    assert ("NotFoundError", NOT_FOUND) == (error["type"], error["code"])
    assert f"'{name}'" in error["message"]


@pytest.mark.parametrize("body", [{}, {"lora_name": 3}, {"lora_name": ""}])
def test_a_body_without_a_name_is_a_bad_request(server: Server, body: dict[str, Any]) -> None:
    """400 in OpenAI's form, naming the field."""
    status, text = server.run(lambda client: client.post("/v1/pin_lora_adapter", body))
    assert BAD_REQUEST == status
    assert "lora_name" in json.loads(text)["error"]["message"]


def test_requests_move_the_metrics(server: Server) -> None:
    """A cold adapter is one load and one wait, with slots one activation from disk; vLLM's own are there."""

    async def ask_between(client: Connection) -> tuple[Series, Series]:
        before = await metrics(client)
        await client.ask(Question(name, PROMPTS[0]))
        return before, await metrics(client)

    name = server.put(7)
    before, after = server.run(ask_between)
    has_slots = server.setup is IN_SLOTS
    for series, least in (
        ("vllm:lora_adapter_load_seconds_count", 1),
        ("chameleon:adapter_activations_total", has_slots),
        ("chameleon:adapter_activation_stall_seconds_count", has_slots),
        ("chameleon:adapter_wait_seconds_count", 1),
        ("vllm:prompt_tokens_total", len(PROMPTS[0])),
    ):
        assert total(after, series) - total(before, series) >= least, series
    from_disk = ("chameleon:adapter_activations_total", frozenset({("source", "disk")}))
    assert (after[from_disk] - before[from_disk] >= 1) is has_slots
    labels = {("adapter_name", name), ("level", "gpu" if has_slots else "cpu"), ("pinned", "false")}
    loaded = [pairs for found, pairs in after if found == LOADED]
    assert 1 == sum(labels < pairs for pairs in loaded)
    gpu = after["vllm:num_gpu_loaded_lora_adapters", frozenset()]
    assert gpu == sum(("level", "gpu") in pairs for pairs in loaded)
    most = SHARED.slots if has_slots else SHARED.seats
    assert most == after["vllm:max_gpu_lora_adapters", frozenset()]


def test_the_operator_is_told(server: Server) -> None:
    """Of the start and of what is refused: by lines in vLLM's form, in the state and in the metrics."""

    async def refuse(client: Connection) -> tuple[str, Series]:
        async def reasons() -> dict[str, str]:
            return {told["name"]: told["reason"] for told in (await state(client))["refused"]}

        async def is_told() -> bool:
            return name in await reasons()

        await until(is_told)
        return (await reasons())[name], await metrics(client)

    name = server.fresh_name()
    places = "2 slots" if server.setup is IN_SLOTS else "adapters of up to rank 16 used"
    (server.adapters / name).mkdir()
    for file in (CONFIG_NAME, WEIGHTS_NAME):
        (server.adapters / name / file).write_text("{")
    reason, series = server.run(refuse)
    assert series["chameleon:adapters_refused", frozenset()] >= 1
    log = (server.adapters.parent / "server.log").read_text(encoding="utf-8")
    form = r"\((\w+) pid=\d+\) (\w+) [\d-]+ [\d:]+ \[\w+\.py:\d+\] "
    for process, level, words in (
        ("EngineCore", "INFO", f"Chameleon {__version__} on vLLM .*: {places} "),
        ("APIServer", "INFO", f"Chameleon serves {len(SERVED)} adapters of .*; 0 refused$"),
        ("APIServer", "WARNING", f"Adapter not served: {re.escape(reason)}$"),
    ):
        assert [(process, level)] == re.findall(form + words, log, re.MULTILINE)


def test_an_unknown_name_is_answered_with_the_nearest(server: Server) -> None:
    """And with how many adapters there are."""
    (reply,) = server.ask([Question("a-1", PROMPTS[0])])
    assert NOT_FOUND == reply.status
    assert reply.error is not None
    assert "adapters are served too: GET /v1/models lists them. Did you mean `a1`?" in str(
        reply.error["message"]
    )
