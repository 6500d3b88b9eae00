"""Where adapters were when requests arrived."""

import json

import pytest

from chameleon_lora.engine_vllm.core.telemetry import ArrivalLog
from chameleon_lora.policy.view import Place
from tests.engine_vllm.api.test_routes import RoutesServer
from tests.engine_vllm.asgi_client import ask
from tests.engine_vllm.fake_requests import ROOM, announced, make_driver, request_for


def noted(*tiers: str, kept: int = 10) -> ArrivalLog:
    """Requests 1, 2, ... that found their adapters there."""
    arrivals = ArrivalLog(kept)
    for number, tier in enumerate(tiers, start=1):
        arrivals.note(str(number), Place(tier))
    return arrivals


def test_all_are_told_in_order() -> None:
    """From the first on, and the number to ask from next."""
    expected = {"next": 2, "arrivals": [["1", "disk"], ["2", "host"]]}
    assert expected == noted("disk", "host").after(0)


def test_only_later_ones_are_told() -> None:
    """After the second of three there is the third; after the third, or later still, none."""
    arrivals = noted("disk", "host", "slot")
    told = [arrivals.after(number)["arrivals"] for number in (2, 3, 99)]
    assert [[["3", "slot"]], [], []] == told


def test_old_ones_are_forgotten() -> None:
    """Of four, two are kept, and the numbers go on."""
    arrivals = noted("disk", "host", "slot", "slot", kept=2)
    assert {"next": 4, "arrivals": [["3", "slot"], ["4", "slot"]]} == arrivals.after(0)


def test_a_request_is_noted_with_the_tier_it_found() -> None:
    """The first finds the adapter on disk, the second while it is being read."""
    driver = make_driver()
    version = driver.announce(announced("a"))
    driver.arrived(request_for("1", version))
    driver.begin_step(ROOM, 0.0)
    driver.end_step()
    driver.arrived(request_for("2", version))
    assert [["1", "disk"], ["2", "loading"]] == driver.arrivals.after(0)["arrivals"]


def test_the_route_answers_in_json() -> None:
    """As the engine tells it, from the number that was asked for."""
    server = RoutesServer()
    server.serve("a")
    driver = server.core.driver
    for number in "12":
        driver.arrived(request_for(number, driver.versions.current("a")))
    answer = ask(server.app, "GET", "/chameleon/arrivals?after=1")
    assert {"next": 2, "arrivals": [["2", "disk"]]} == json.loads(answer.text)


@pytest.mark.parametrize("after", ["-1", "x"])
def test_a_number_that_is_none_is_refused(after: str) -> None:
    """Before the engine is asked."""
    server = RoutesServer()
    server.core.driver = None
    assert ask(server.app, "GET", f"/chameleon/arrivals?after={after}").status in (400, 422)
