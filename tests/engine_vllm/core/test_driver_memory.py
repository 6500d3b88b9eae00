"""What the driver remembers of requests and versions, and when it forgets."""

import pytest

from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.messages import Loaded, LoadFailed
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


def waits(driver: Driver) -> int:
    """Requests whose wait for an adapter was counted."""
    return int(sum(driver.telemetry.counts()["wait_seconds"]["counts"]))


def test_a_request_waits_for_its_adapter_once() -> None:
    """Read for it, given up for an older request's and read again, it is one wait, the first."""
    driver = make_driver(settings=PolicySettings(cache=CacheSettings(host_bytes=MIB)))
    a, b = driver.announce(announced("a")), driver.announce(announced("b"))
    gone, first, second = request_for("0", a), request_for("1", b), request_for("2", a)
    driver.arrived(gone)
    driver.begin_step(ROOM, 0.0)
    driver.arrived(first)
    driver.arrived(second)
    gone.end = "abort"
    driver.withdrawn(gone)
    driver.acknowledge([Loaded(a.id, MIB, 8, 0.1)], 1.0)
    assert 1 == waits(driver)
    assert [b.id] == [load.adapter_id for load in carry_out(driver, 2.0)[0].loads]
    carry_out(driver, 3.0)
    first.end = "stop"
    assert [a.id] == [load.adapter_id for load in carry_out(driver, 4.0)[0].loads]
    assert 2 == waits(driver)


def test_those_that_end_before_are_forgotten() -> None:
    """Aborted, or failed with their adapter: nothing is kept, and nothing counted."""
    driver = make_driver()
    version = driver.announce(announced("a"))
    aborted, failed = request_for("1", version), request_for("2", version)
    driver.arrived(aborted)
    driver.arrived(failed)
    driver.withdrawn(aborted)
    driver.begin_step(ROOM, 0.0)
    driver.acknowledge([LoadFailed(version.id, "no", Fault.SERVER)], 0.1)
    for failure in driver.begin_step(ROOM, 0.2).fail:
        driver.forget(failure.request_id)
    assert ({}, 0) == (driver._waits._absent, waits(driver))


def test_versions_that_nobody_needs_are_forgotten() -> None:
    """A thousand re-announcements leave the current one and some that are not worth a look."""
    driver = make_driver()
    for number in range(1000):
        driver.announce(announced("a", str(number)))
    assert 1 == len(driver.policy.adapters)
    assert len(driver.versions) < 32
    current = driver.versions.current("a")
    assert current is not None
    driver.arrived(request_for("r", current))
    carry_out(driver, 0.0)
    assert ["r"] == carry_out(driver, 0.1)[1]


def test_a_load_that_fails_again_and_again_is_told_once(caplog: pytest.LogCaptureFixture) -> None:
    """Requests may ask for it without end; another version is told again."""
    driver = make_driver()
    for content in ("1", "2"):
        version = driver.announce(announced("a", content))
        for number in range(5):
            driver.arrived(request_for(f"{content}-{number}", version))
            if driver.begin_step(ROOM, 0.0).loads:
                driver.acknowledge([LoadFailed(version.id, "no weights", Fault.SERVER)], 0.1)
            driver.end_step()
            for failure in driver.begin_step(ROOM, 0.2).fail:
                driver.forget(failure.request_id)
            driver.end_step()
    assert ["no weights"] * 2 == [record.getMessage() for record in caplog.records]
