"""Reading what a server says of itself."""

import pytest

from chameleon_lora.bench.server_pages import Gauges, read_gauges, read_state, residencies
from chameleon_lora.metrics.sample import LaneSample

PAGE = b"""\
# HELP vllm:num_requests_running Number of requests in model execution batches.
# TYPE vllm:num_requests_running gauge
vllm:num_requests_running{engine="0",model_name="a}b"} 3.0
vllm:num_requests_running{engine="1",model_name="a}b"} 2.0
vllm:num_requests_waiting{engine="0"} 1.0 1712345678
vllm:num_requests_waiting_by_reason{engine="0"} 70.0
vllm:kv_cache_usage_perc{engine="0"} 0.5
vllm:kv_cache_usage_perc{engine="1"} 0.25
"""


def test_requests_of_engines_add_up_and_usage_is_their_mean() -> None:
    """3 and 2 running, 1 waiting, half and a quarter of the KV cache."""
    assert Gauges(running=5, waiting=1, kv_usage=0.375) == read_gauges(PAGE)


@pytest.mark.parametrize(
    "page", [b"", b"<html>", b"vllm:num_requests_running NaN\n", b"vllm:num_requests_running x\n"]
)
def test_what_is_not_there_is_none(page: bytes) -> None:
    """Another server's page, and values that are no numbers."""
    assert Gauges(None, None, None) == read_gauges(page)


def test_a_gauge_without_labels_is_read() -> None:
    """CRLF or not."""
    assert 7 == read_gauges(b"vllm:num_requests_running 7\r\n").running


def test_the_state_tells_lanes_and_bytes() -> None:
    """Fields that nobody asked for are passed over; three blocks of 10 bytes are lent."""
    page = b"""{"lanes": [{"lane": 0, "waiting": 4, "loading": 1, "running": 2, "head": "cmpl-1",
        "quota_tokens": 100, "used_tokens": 60, "held": "quota", "why": "..."}],
        "tiers": {"disk": {"adapters": 9, "bytes": 90}, "slot": {"adapters": 1, "bytes": 10}},
        "device": {"held_blocks": 3, "block_bytes": 10, "promotions": 5}, "slots": 4}"""
    state = read_state(page)
    assert (LaneSample(0, 4, 1, 2, 60, 100, "quota"),) == state.lanes
    assert [("slot", 10), ("disk", 90)] == list(state.cache_bytes.items())
    assert 30 == state.lent_bytes


def test_a_state_of_another_form_is_refused() -> None:
    """So that a look can leave it out."""
    with pytest.raises(ValueError, match="device"):
        read_state(b'{"lanes": [], "tiers": {}}')


@pytest.mark.parametrize("engine_id", ["cmpl-ab", "cmpl-ab-0", "cmpl-ab-0-1f2e3d"])
def test_an_arrival_is_found_by_the_beginning_of_its_id(engine_id: str) -> None:
    """Whatever parts the engine adds."""
    assert {"cmpl-ab": "host"} == residencies([(engine_id, "host")], {"cmpl-ab", "cmpl"})


def test_arrivals_of_others_and_unknown_tiers_are_left_out() -> None:
    """An id that only begins alike is another's."""
    arrivals = [("cmpl-abc-0", "host"), ("cmpl-x", "host"), ("cmpl-ab-0", "moon"), ("", "slot")]
    assert {} == residencies(arrivals, {"cmpl-ab"})


def test_the_first_arrival_of_a_request_counts() -> None:
    """Of a request with several choices."""
    arrivals = [("cmpl-ab-0", "disk"), ("cmpl-ab-1", "host")]
    assert {"cmpl-ab": "disk"} == residencies(arrivals, {"cmpl-ab"})
