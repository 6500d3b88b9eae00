"""A load by request: what is new is served once it was read, and what was before until then."""

from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.messages import LoadAdapter, Loaded, LoadFailed
from chameleon_lora.policy.plan import Fault
from chameleon_lora.policy.settings import CacheSettings, PolicySettings
from tests.engine_vllm.fake_requests import (
    MIB,
    ROOM,
    announced,
    carry_out,
    make_driver,
    request_for,
)


def ordered(driver: Driver) -> list[LoadAdapter]:
    """The loads that the next step begins."""
    commands = driver.commands(driver.begin_step(ROOM, 1.0))
    driver.end_step()
    return [command for command in commands if isinstance(command, LoadAdapter)]


def fingerprint(driver: Driver, name: str = "a") -> str | None:
    """Which content a request for the name gets; None if the name is unknown."""
    version = driver.versions.current(name)
    return None if version is None else version.source.fingerprint


def test_what_was_read_takes_the_place_of_the_former() -> None:
    """An idle engine reads it at once; the former goes when it is there, and leaves its pin."""
    driver = make_driver()
    driver.announce(announced("a"))
    driver.pin("a", is_pinned=True)
    carry_out(driver, 0.5)
    trial = driver.try_out(announced("a", "2"))
    assert 0.0 == driver.idle_s(1.0)
    [load] = ordered(driver)
    assert ("1", "2", False) == (fingerprint(driver), load.fingerprint, trial.done())
    driver.acknowledge([Loaded(load.adapter_id, MIB, 8, 0.1)], 1.0)
    assert ("2", True, None) == (fingerprint(driver), trial.done(), trial.result(timeout=0))
    [known] = driver.view().adapters
    assert (load.adapter_id, True, 0) == (known.adapter.id, known.is_pinned, known.queued)


def test_what_cannot_be_read_leaves_the_former() -> None:
    """Its requests notice nothing; of the new one nothing is left but its reason."""
    driver = make_driver()
    former = driver.announce(announced("a"))
    carry_out(driver, 0.5)
    trial = driver.try_out(announced("a", "2"))
    [load] = ordered(driver)
    driver.arrived(request_for("r", former))
    driver.acknowledge([LoadFailed(load.adapter_id, "nan", Fault.CONTENT)], 1.0)
    plan, _ = carry_out(driver, 1.0)
    _, admitted = carry_out(driver, 1.1)
    failure = trial.result(timeout=0)
    assert failure is not None
    assert ("nan", Fault.CONTENT) == (failure.reason, failure.fault)
    assert ("1", ["r"]) == (fingerprint(driver), admitted)
    assert [former.id] == list(driver.policy.adapters)
    assert [failure] == list(plan.fail)


def test_a_name_that_was_tried_in_vain_is_unknown() -> None:
    """No request gets what could not be read, and a later one of other files is served."""
    driver = make_driver()
    trial = driver.try_out(announced("a"))
    [load] = ordered(driver)
    driver.acknowledge([LoadFailed(load.adapter_id, "gone", Fault.FILES)], 1.0)
    carry_out(driver, 1.0)
    assert (True, None, 0) == (trial.done(), fingerprint(driver), len(driver.policy.adapters))
    again = driver.try_out(announced("a", "2"))
    carry_out(driver, 2.0)
    assert (None, "2") == (again.result(timeout=0), fingerprint(driver))


def test_what_finds_no_room_beside_pinned_ones_is_told() -> None:
    """And not waited for: nobody knows when they will be unpinned."""
    cache = CacheSettings(host_bytes=MIB)
    driver = make_driver(settings=PolicySettings(cache=cache))
    driver.announce(announced("a"))
    driver.pin("a", is_pinned=True)
    carry_out(driver, 0.5)
    trial = driver.try_out(announced("b"))
    carry_out(driver, 1.0)
    carry_out(driver, 1.1)
    failure = trial.result(timeout=0)
    assert failure is not None
    assert Fault.SERVER is failure.fault
    assert "unpin some" in failure.reason


def test_what_is_served_and_was_read_is_not_read_again() -> None:
    """Nor loses its place in memory or its blocks; what was only announced is read first."""
    driver = make_driver()
    driver.announce(announced("a"))
    trial = driver.try_out(announced("a"))
    [load] = ordered(driver)
    driver.acknowledge([Loaded(load.adapter_id, MIB, 8, 0.1, fingerprint="1")], 1.0)
    version = driver.versions.current("a")
    again = driver.try_out(announced("a"))
    assert (None, None) == (trial.result(timeout=0), again.result(timeout=0))
    assert version is driver.versions.current("a")
    assert [] == ordered(driver)


def test_nothing_is_counted_of_a_trial() -> None:
    """It is no request: no wait is measured, and none arrived."""
    driver = make_driver()
    driver.try_out(announced("a"))
    carry_out(driver, 1.0)
    assert 0 == sum(driver.telemetry.counts()["wait_seconds"]["counts"])
    assert (0, []) == tuple(driver.arrivals.after(0).values())
