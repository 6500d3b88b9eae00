"""The keys that vLLM's bench has, against vLLM's own arithmetic."""

import random

import pytest

from chameleon_lora.metrics.objectives import Objective
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.metrics.serving import Window, serving_result

pytestmark = [pytest.mark.vllm, pytest.mark.slow]

NAMES = ("ttft", "tpot", "itl", "e2el")


def drawn(rng: random.Random, index: int) -> RequestRecord:
    """A request sent when it arrived; one in ten failed, one in ten has a single token."""
    arrival_s = rng.uniform(0.0, 20.0)
    count = 1 if rng.random() < 0.1 else rng.randint(2, 40)
    times_s, now_s = [], arrival_s
    for _ in range(count):
        now_s += rng.expovariate(10.0)
        times_s.append(now_s)
    return RequestRecord(
        index=index,
        adapter="a",
        arrival_s=arrival_s,
        sent_s=arrival_s,
        first_token_s=times_s[0],
        token_times_s=tuple(times_s),
        end_s=now_s,
        prompt_tokens=rng.randint(1, 500),
        output_tokens=count,
        error="broken" if rng.random() < 0.1 else None,
    )


@pytest.mark.parametrize("seed", range(3))
def test_figures_are_those_of_vllms_bench(seed: int) -> None:
    """200 requests: counts, rates, goodput, peaks, and each mean, median, deviation and P99."""
    serve = pytest.importorskip("vllm.benchmarks.serve")
    endpoint = pytest.importorskip("vllm.benchmarks.lib.endpoint_request_func")
    rng = random.Random(seed)
    records = [drawn(rng, index) for index in range(200)]
    outputs = [
        endpoint.RequestFuncOutput(
            success=record.error is None,
            latency=record.latency_s,
            output_tokens=record.output_tokens,
            ttft=record.ttft_s,
            itl=list(record.token_gaps_s),
            prompt_len=record.prompt_tokens,
            start_time=record.sent_s,
            error=record.error or "",
        )
        for record in records
    ]
    objectives = {Objective.TTFT: 0.2, Objective.TPOT: 0.12, Objective.E2EL: 4.0}
    result = serving_result(records, Window(0.0, 20.0, objectives))
    theirs, _ = serve.calculate_metrics(
        [], outputs, result["duration"], None, [99.0], {o.value: s * 1e3 for o, s in objectives.items()}
    )  # fmt: skip
    for ours, name in (
        ("completed", "completed"),
        ("failed", "failed"),
        ("total_input_tokens", "total_input"),
        ("total_output_tokens", "total_output"),
        ("request_throughput", "request_throughput"),
        ("request_goodput", "request_goodput"),
        ("output_throughput", "output_throughput"),
        ("total_token_throughput", "total_token_throughput"),
        ("max_output_tokens_per_s", "max_output_tokens_per_s"),
        ("max_concurrent_requests", "max_concurrent_requests"),
        *(
            (f"{kind}_{n}_ms", f"{kind}_{n}_ms")
            for kind in ("mean", "median", "std")
            for n in NAMES
        ),
    ):
        assert result[ours] == pytest.approx(getattr(theirs, name)), ours
    for name in NAMES:
        assert result[f"p99_{name}_ms"] == pytest.approx(
            dict(getattr(theirs, f"percentiles_{name}_ms"))[99.0]
        )
