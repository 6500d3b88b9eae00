"""The driver's state as plain dicts, over the real policy."""

from dataclasses import replace
from typing import Any

import msgspec
import pytest

from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.core.state import explain, metrics_of, state_of
from chameleon_lora.engine_vllm.core.versions import Version
from chameleon_lora.engine_vllm.messages import Promoted
from chameleon_lora.policy.plan import Held, LaneState, Promotion
from chameleon_lora.policy.request import RequestId
from chameleon_lora.policy.view import Place
from tests.engine_vllm.fake_requests import (
    LIMITS,
    MIB,
    ROOM,
    FakeRequest,
    announced,
    carry_out,
    make_driver,
    request_for,
)

BLOCK_BYTES = MIB // 4
LENDING = replace(LIMITS, block_bytes=BLOCK_BYTES)
FREE = replace(ROOM, free_blocks=LIMITS.kv_tokens // LIMITS.block_tokens)


def run_one(driver: Driver, request_id: str, version: Version, now_s: float) -> FakeRequest:
    """A request that runs from this time on, its adapter loaded for it."""
    request = request_for(request_id, version)
    driver.arrived(request)
    for _ in range(2):
        carry_out(driver, now_s)
    assert RequestId(request_id) in driver.policy.running
    return request


def begun(driver: Driver, now_s: float) -> tuple[Promotion, ...]:
    """The promotions that one step begins, all KV blocks being idle."""
    plan = driver.begin_step(FREE, now_s)
    driver.end_step()
    return plan.promotions


def adapters(driver: Driver) -> dict[str, dict[str, Any]]:
    """Those that the state lists, by name."""
    return {adapter["name"]: adapter for adapter in state_of(driver)["adapters"]}


def test_an_idle_engine_shows_what_it_has() -> None:
    """Limits of the engine, one lane, nobody waiting, adapters on disk counted and not listed."""
    driver = make_driver()
    driver.announce(announced("a"))
    state = state_of(driver)
    assert (2, 8, 256) == (state["slots"], state["seats"], state["kv_blocks"])
    assert {"bytes": 0, "limit_bytes": None} == state["host"]
    assert {"adapters": 1, "bytes": MIB} == state["tiers"]["disk"]
    assert [] == state["adapters"]
    (lane,) = state["lanes"]
    assert (0, 0, 0, 0) == tuple(lane[key] for key in ("lane", "waiting", "loading", "running"))
    assert [None] * 4 == [lane[key] for key in ("head", "head_adapter", "held", "why")]


def test_each_adapter_is_counted_at_its_fastest_place() -> None:
    """On disk, loading, in host memory, in a slot: one each, and their bytes."""
    driver = make_driver(limits=replace(LIMITS, slots=1))
    _disk, load, host, slot = (driver.announce(announced(name)) for name in "dlhs")
    run_one(driver, "1", host, 1.0).end = "stop"
    run_one(driver, "2", slot, 2.0)
    driver.arrived(request_for("3", load))
    driver.begin_step(ROOM, 3.0)
    driver.end_step()
    expected = {"disk": 1, "loading": 1, "host": 1, "device": 0, "slot": 1}
    tiers = state_of(driver)["tiers"]
    assert [place.value for place in Place] == list(tiers)
    assert expected == {tier: found["adapters"] for tier, found in tiers.items()}
    assert {tier: n * MIB for tier, n in expected.items()} == {
        tier: found["bytes"] for tier, found in tiers.items()
    }
    assert {"l": "loading", "h": "host", "s": "slot"} == {
        name: adapter["tier"] for name, adapter in adapters(driver).items()
    }


def test_an_adapter_tells_who_uses_it() -> None:
    """Rank, bytes, slot, and requests that run and wait; pinning shows at once."""
    driver = make_driver(limits=replace(LIMITS, seats=1))
    version = driver.announce(announced("a"))
    run_one(driver, "1", version, 1.0)
    driver.arrived(request_for("2", version))
    driver.policy.pin(version.id, is_pinned=True)
    assert {
        "name": "a",
        "version": "a@1",
        "rank": 8,
        "bytes": MIB,
        "tier": "slot",
        "blocks": 0,
        "is_promoting": False,
        "running": 1,
        "queued": 1,
        "is_pinned": True,
        "is_leaving": False,
        "slot": 0,
    } == adapters(driver)["a"]


def test_a_copy_in_kv_blocks_counts_when_it_is_complete() -> None:
    """Under way it is a promotion and its blocks are held; done, the adapter is on the device."""
    driver = make_driver(limits=replace(LENDING, slots=1))
    a, b = driver.announce(announced("a")), driver.announce(announced("b"))
    run_one(driver, "1", a, 1.0).end = "stop"
    run_one(driver, "2", b, 2.0)  # takes the one slot
    promotions = begun(driver, 3.0)
    seen: list[tuple[str, str]] = []
    for now_s in (4.0, 5.0):
        under_way = {n: a["tier"] for n, a in adapters(driver).items() if a["is_promoting"]}
        assert len(promotions) == len(under_way) == state_of(driver)["device"]["promoting"]
        seen += under_way.items()
        driver.acknowledge([Promoted(p.adapter_id, p.serial, 0.1) for p in promotions], now_s)
        promotions = begun(driver, now_s)
    assert [("a", "host"), ("b", "slot")] == sorted(seen)
    assert () == promotions
    assert ("device", 4, False) == tuple(
        adapters(driver)["a"][key] for key in ("tier", "blocks", "is_promoting")
    )
    shown, device = state_of(driver)["device"], driver.view().device
    assert (8, device.limit_blocks, device.headroom_blocks, BLOCK_BYTES) == tuple(
        shown[key] for key in ("held_blocks", "limit_blocks", "headroom_blocks", "block_bytes")
    )
    numbers = metrics_of(driver)
    assert {"a": "gpu", "b": "gpu"} == {
        found["name"]: found["level"] for found in numbers["adapters"]
    }
    assert (8, 8 * BLOCK_BYTES) == (numbers["borrowed_blocks"], numbers["borrowed_bytes"])
    driver.policy.cache_emptied()
    demotions = state_of(driver)["device"]["demotions"]
    assert (2, 2) == (demotions["reset"], sum(demotions.values()))
    assert demotions == metrics_of(driver)["demotions"]


def test_a_lane_says_why_its_first_request_waits() -> None:
    """With one seat taken, the next request's adapter, the reason and a sentence are there."""
    driver = make_driver(limits=replace(LIMITS, seats=1))
    version = driver.announce(announced("a"))
    run_one(driver, "1", version, 1.0)
    driver.arrived(request_for("2", version))
    carry_out(driver, 2.0, replace(ROOM, seats=0))
    (lane,) = state_of(driver)["lanes"]
    assert ("2", "a", "seats") == (lane["head"], lane["head_adapter"], lane["held"])
    assert "All 1 seats (max_num_seqs) are taken." == lane["why"]
    assert (1, 0, 1) == (lane["waiting"], lane["loading"], lane["running"])
    assert "seats" == metrics_of(driver)["lanes"][0]["held"]


def test_a_base_model_request_at_the_head_has_no_adapter() -> None:
    """Its lane shows the request, and no adapter's name."""
    driver = make_driver(limits=replace(LIMITS, seats=1))
    driver.arrived(FakeRequest("1"))
    carry_out(driver, 1.0)
    driver.arrived(FakeRequest("2"))
    carry_out(driver, 2.0, replace(ROOM, seats=0))
    (lane,) = state_of(driver)["lanes"]
    assert ("2", None) == (lane["head"], lane["head_adapter"])


@pytest.mark.parametrize("held", Held)
def test_each_reason_has_a_sentence(held: Held) -> None:
    """It is one sentence, and the numbers it gives are the lane's and the engine's."""
    state = LaneState(
        1, 2, 3, 4, quota_tokens=500, used_tokens=60, head=None, head_adapter=None, held=held
    )
    why = explain(held, state, LIMITS)
    assert why[0].isupper()
    assert why.endswith(".")
    numbers = {Held.SEATS: ["8"], Held.QUOTA: ["60", "500"], Held.SLOTS: ["2"]}
    assert all(number in why for number in numbers.get(held, []))


def test_a_replaced_version_is_told_from_the_one_that_serves() -> None:
    """Both are in the state while the former runs; the metrics name what new requests get."""
    driver = make_driver()
    first = driver.announce(announced("a", "1"))
    run_one(driver, "1", first, 1.0)
    latest = driver.announce(announced("a", "2"))
    run_one(driver, "2", latest, 2.0)
    former, current = state_of(driver)["adapters"]
    assert (first.inner_name, True, False) == (
        former["name"],
        former["is_leaving"],
        "version" in former,
    )
    assert ("a", latest.inner_name, False) == (
        current["name"],
        current["version"],
        current["is_leaving"],
    )
    assert [{"name": "a", "level": "gpu", "is_pinned": False, "rank": 8}] == metrics_of(driver)[
        "adapters"
    ]


def test_what_is_in_host_memory_only_is_on_the_cpu() -> None:
    """The adapter whose slot another took is cpu, that other one gpu, one on disk absent."""
    driver = make_driver(limits=replace(LIMITS, slots=1))
    first, second, _ = (driver.announce(announced(name)) for name in "abc")
    run_one(driver, "1", first, 1.0).end = "stop"
    run_one(driver, "2", second, 2.0)
    levels = {found["name"]: found["level"] for found in metrics_of(driver)["adapters"]}
    assert {"a": "cpu", "b": "gpu"} == levels


def test_without_slots_an_adapter_in_use_is_where_it_lies() -> None:
    """In host memory; a batch mixes as many as there are seats, and there are no slots to tell of."""
    driver = make_driver(limits=replace(LIMITS, slots=0, is_paged=True))
    version = driver.announce(announced("a"))
    run_one(driver, "1", version, 1.0)
    state, metrics = state_of(driver), metrics_of(driver)
    assert (None, "host") == (state["slots"], adapters(driver)["a"]["tier"])
    assert (8, "cpu") == (metrics["mixed"], metrics["adapters"][0]["level"])
    assert driver.policy.adapter(version.id).running


@pytest.mark.parametrize("read", [state_of, metrics_of])
def test_it_crosses_the_process_border_unchanged(read: Any) -> None:
    """msgpack to the API server, JSON to the client; reading twice gives the same."""
    driver = make_driver(limits=LENDING)
    run_one(driver, "1", driver.announce(announced("a")), 1.0)
    driver.arrived(FakeRequest("2"))
    state = read(driver)
    assert state == msgspec.msgpack.decode(msgspec.msgpack.encode(state))
    assert state == msgspec.json.decode(msgspec.json.encode(state))
    assert state == read(driver)
