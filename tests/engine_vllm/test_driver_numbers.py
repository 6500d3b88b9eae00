"""What the numbers that a client writes into a request change: its expected output, if trusted."""

from dataclasses import replace

import pytest

from chameleon_lora.policy.request import RequestId
from tests.engine_vllm.fake_requests import (
    LIMITS,
    ROOM,
    FakeParams,
    FakeRequest,
    carry_out,
    make_driver,
)


@pytest.mark.parametrize(
    ("trusts_hints", "extra_args", "expected"),
    [
        (True, {"output_tokens": 7}, 7),
        (False, {"output_tokens": 7}, 128),
        (True, {"output_tokens": 0}, 128),
        (True, {"output_tokens": "7"}, 128),
        (True, {"output_tokens": True}, 128),
        (True, {"output_tokens": -7}, 128),
        (True, {"output_tokens": 1e30}, 128),
        (True, {"output_tokens": 7.0}, 128),
        (True, {"output_tokens": float("nan")}, 128),
        (True, {"output_tokens": [7]}, 128),
        (True, {"output_tokens": {"output_tokens": 7}}, 128),
        (True, {"output_tokens": None}, 128),
        (True, {"output_tokens": 10**30}, 500),
        (True, {"OUTPUT_TOKENS": 7, "priority": -1, "max_tokens": 1}, 128),
        (False, {"output_tokens": 10**30}, 128),
        (True, {}, 128),
        (True, None, 128),
    ],
)
def test_a_hint_counts_only_if_it_is_trusted_and_a_number(
    trusts_hints: bool, extra_args: dict[str, object] | None, expected: int
) -> None:
    """Otherwise the estimate starts from the belief of 128 tokens."""
    driver = make_driver(trusts_hints=trusts_hints)
    driver.arrived(FakeRequest("r", max_tokens=500, sampling_params=FakeParams(extra_args)))
    assert expected == driver.policy.request(RequestId("r")).output_tokens


@pytest.mark.parametrize("max_tokens", [129, 1 << 31, (1 << 63) - 1])
@pytest.mark.parametrize("priority", [0, -(1 << 63), (1 << 63) - 1])
def test_a_place_is_not_asked_for(max_tokens: int, priority: int) -> None:
    """However much a request may generate, and whatever priority it names, it runs in its turn."""
    driver = make_driver(limits=replace(LIMITS, seats=1))
    for number in range(3):
        request = FakeRequest(f"r{number}", max_tokens=200)
        if number == 1:
            request.max_tokens = max_tokens
            request.priority = priority  # type: ignore[attr-defined]  # of vLLM's, read by nobody
        driver.arrived(request)
    order = []
    for step in range(3):
        _, admitted = carry_out(driver, float(step), replace(ROOM, seats=1))
        order += admitted
        for request_id in admitted:
            driver._requests[RequestId(request_id)].end = "stop"
    assert ["r0", "r1", "r2"] == order


def test_a_request_without_sampling_parameters_has_no_hint() -> None:
    """Pooling requests have none."""
    driver = make_driver(trusts_hints=True)
    driver.arrived(FakeRequest("r", sampling_params=None))
    assert 20 == driver.policy.request(RequestId("r")).output_tokens
