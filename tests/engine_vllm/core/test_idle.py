"""When an engine without requests is to make a step all the same."""

from dataclasses import replace

from chameleon_lora.engine_vllm.messages import DropAdapter, LoadAdapter, Loaded
from chameleon_lora.policy.settings import PolicySettings, PrefetchSettings
from tests.engine_vllm.fake_requests import (
    MIB,
    ROOM,
    announced,
    carry_out,
    make_driver,
    request_for,
)


def test_an_engine_with_nothing_to_do_rests() -> None:
    """Until it is told something; an adapter announced is nothing to do."""
    driver = make_driver()
    assert driver.idle_s(0.0) is None
    driver.announce(announced("a"))
    assert driver.idle_s(1.0) is None


def test_a_pin_is_read_at_once_and_its_end_looked_for() -> None:
    """The less often the longer it takes, and never less than once a second."""
    driver = make_driver()
    version = driver.announce(announced("a"))
    driver.pin("a", is_pinned=True)
    assert 0.0 == driver.idle_s(1.0)
    assert LoadAdapter in map(type, driver.commands(driver.begin_step(ROOM, 1.0)))
    pauses_s = [driver.idle_s(1.0 + passed_s) for passed_s in (0.0, 1.0, 1e6)]
    assert [0.02, 0.125, 1.0] == pauses_s
    driver.acknowledge([Loaded(version.id, MIB, 8, 0.1)], 2.0)
    assert 0.0 == driver.idle_s(2.0)
    assert () == driver.commands(driver.begin_step(ROOM, 2.0))
    assert driver.idle_s(2.0) is None


def test_a_withdrawn_adapter_gives_its_memory_back() -> None:
    """Workers hear of it in a step of its own."""
    driver = make_driver()
    version = driver.announce(announced("a"))
    driver.pin("a", is_pinned=True)
    carry_out(driver, 1.0)
    carry_out(driver, 1.0)
    driver.withdraw("a")
    assert 0.0 == driver.idle_s(2.0)
    assert (DropAdapter(version.id),) == driver.commands(driver.begin_step(ROOM, 2.0))
    assert driver.idle_s(2.0) is None


def test_a_forecast_wakes_it_when_its_time_comes() -> None:
    """An adapter that was asked for every 100 s is read again before the next time."""
    prefetch = PrefetchSettings(predicted=True)
    settings = replace(PolicySettings(), prefetch=prefetch)
    driver = make_driver(settings=settings)
    version = driver.announce(announced("a"))
    for number in range(20):
        request = request_for(str(number), version)
        driver.tick(100.0 * number)
        driver.arrived(request)
        carry_out(driver, 100.0 * number)
        carry_out(driver, 100.0 * number)
        request.end = "stop"
        carry_out(driver, 100.0 * number + 1.0)
    idle_s = driver.idle_s(1901.0)
    assert idle_s is not None
    assert 60.0 < idle_s < 99.0
