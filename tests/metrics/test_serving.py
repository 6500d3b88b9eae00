"""A run's result: vLLM's keys and ours."""

import json
from collections.abc import Sequence
from dataclasses import replace

import pytest

from chameleon_lora.metrics.objectives import Objective
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.metrics.serving import Window, serving_result
from tests.metrics.records import record

VLLM_KEYS = {
    "duration",
    "completed",
    "failed",
    "total_input_tokens",
    "total_output_tokens",
    "request_throughput",
    "request_goodput",
    "output_throughput",
    "total_token_throughput",
    "max_output_tokens_per_s",
    "max_concurrent_requests",
} | {
    f"{kind}_{name}_ms"
    for kind in ("mean", "median", "std", "p99")
    for name in ("ttft", "tpot", "itl", "e2el")
}
OUR_KEYS = {
    "slo",
    "per_adapter",
    "per_rank",
    "per_residency",
    "fairness",
    "lateness",
    "errors",
}
WINDOW = Window(warmup_s=5.0, duration_s=10.0)
EARLY = record(0, 4.9, (99.0,))
FIRST = record(1, 5.0, (6.0, 6.5, 7.5))
LATER = record(2, 9.0, (12.0, 12.5))
FAILED = record(3, 9.5, (), error="HTTP 404 for 'x': no such model")
LATE = record(4, 10.0, (10.1,))


def test_keys_are_vllms_and_ours() -> None:
    """Nothing is missing for a script that reads vLLM's result, even of a run without requests."""
    assert VLLM_KEYS | OUR_KEYS == set(serving_result([FIRST], WINDOW))
    assert VLLM_KEYS | OUR_KEYS == set(serving_result([], WINDOW))


def test_only_requests_of_the_window_count() -> None:
    """Those that arrive at 4.9 and at 10 s, before and after 5 to 10 s, do not."""
    result = serving_result([EARLY, FIRST, LATER, FAILED, LATE], WINDOW)
    assert (2, 1) == (result["completed"], result["failed"])
    assert 2000.0 == result["mean_ttft_ms"]


def test_rates_run_from_the_warm_up_to_the_last_answer() -> None:
    """Tokens until 12.5 s: 7.5 s for 2 answers, 5 output tokens and 20 of prompts."""
    result = serving_result([FIRST, LATER], WINDOW)
    assert (7.5, 5, 20) == tuple(
        result[key] for key in ("duration", "total_output_tokens", "total_input_tokens")
    )
    rates = ("request_throughput", "output_throughput", "total_token_throughput")
    assert pytest.approx([2 / 7.5, 5 / 7.5, 25 / 7.5]) == [result[key] for key in rates]


@pytest.mark.parametrize("records", [[FIRST], [FIRST, FAILED], []])
def test_a_window_is_as_long_as_it_was_asked_for(records: Sequence[RequestRecord]) -> None:
    """An answer that ended early, a failure or no request make it no shorter or longer than 5 s."""
    assert 5.0 == serving_result(records, WINDOW)["duration"]


def test_times_are_in_milliseconds() -> None:
    """First tokens after 1 and 3 s; gaps of 0.5, 1 and 0.5; per token 0.75 and 0.5; ends 2.5, 3.5."""
    result = serving_result([FIRST, LATER], WINDOW)
    found = {name: result[f"mean_{name}_ms"] for name in ("ttft", "itl", "tpot", "e2el")}
    assert pytest.approx(found) == {"ttft": 2000.0, "itl": 2000 / 3, "tpot": 625.0, "e2el": 3000.0}
    assert pytest.approx((2000.0, 1000.0, 2980.0)) == tuple(
        result[f"{kind}_ttft_ms"] for kind in ("median", "std", "p99")
    )


def test_goodput_is_good_requests_per_second() -> None:
    """One of three within 1 s, over 7.5 s; a third of the requests, the failed one being a miss."""
    window = replace(WINDOW, objectives={Objective.TTFT: 1.0})
    result = serving_result([FIRST, LATER, FAILED], window)
    assert pytest.approx(1 / 7.5) == result["request_goodput"]
    assert {"objectives_ms": {"ttft": 1000.0}, "share": 1 / 3} == result["slo"]


def test_without_objectives_goodput_is_null() -> None:
    """As in vLLM's result; with some and no request it is 0."""
    assert serving_result([FIRST], WINDOW)["request_goodput"] is None
    asked = replace(WINDOW, objectives={Objective.E2EL: 1.0})
    assert 0.0 == serving_result([], asked)["request_goodput"]


def test_adapters_ranks_and_places_have_their_own_figures() -> None:
    """Each group has its requests and its P99; an adapter's rank stands beside it where known."""
    records = [replace(FIRST, residency="host"), replace(LATER, adapter="b"), FAILED]
    result = serving_result(records, replace(WINDOW, ranks={"a": 8}))
    adapters = result["per_adapter"]
    assert [("a", 8, 2, 1), ("b", None, 1, 0)] == [
        (name, group["rank"], group["requests"], group["failed"])
        for name, group in adapters.items()
    ]
    assert pytest.approx(3000.0) == adapters["b"]["p99_ttft_ms"]
    assert (["8"], ["host"]) == (list(result["per_rank"]), list(result["per_residency"]))


def test_errors_are_counted_by_cause() -> None:
    """One HTTP 404 in the window."""
    assert {"HTTP 404": 1} == serving_result([FIRST, FAILED], WINDOW)["errors"]


def test_lateness_is_of_all_requests_sent() -> None:
    """A request of the warm-up that was sent a second late makes the run fall behind."""
    late = replace(EARLY, sent_s=5.9)
    assert serving_result([late, FIRST], WINDOW)["lateness"]["has_fallen_behind"]
    assert not serving_result([FIRST], WINDOW)["lateness"]["has_fallen_behind"]


def test_a_result_is_plain_json() -> None:
    """No NaN, nothing that JSON has no word for."""
    for records in ([], [FIRST, LATER, FAILED]):
        result = serving_result(records, replace(WINDOW, objectives={Objective.TPOT: 1.0}))
        assert result == json.loads(json.dumps(result, allow_nan=False))
