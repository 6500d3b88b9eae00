"""What the traffic's options mean."""

import argparse
import json
import math
from collections import Counter
from pathlib import Path

import pytest

from chameleon_lora.cli.traffic import add_traffic_options, traffic_of
from chameleon_lora.errors import ConfigError
from chameleon_lora.workload.arrivals import Gamma, Poisson, Recorded
from chameleon_lora.workload.named_adapters import NamedAdapter, named_adapters
from chameleon_lora.workload.requests import WorkloadSpec, make_workload
from chameleon_lora.workload.traffic import Traffic


def parsed(*words: str) -> Traffic:
    """The traffic of a command line."""
    parser = argparse.ArgumentParser()
    add_traffic_options(parser)
    return traffic_of(parser.parse_args(words))


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """Four requests in three seconds, three of them for x."""
    rows = [(0, "x", 100, 10), (1_000, "y", 200, 20), (1_500, "x", 300, 30), (3_000, "x", 400, 40)]
    path = tmp_path / "trace.jsonl"
    path.write_text(
        "".join(
            json.dumps({"timestamp": t, "adapter": a, "input_length": i, "output_length": o}) + "\n"
            for t, a, i, o in rows
        )
    )
    return str(path)


def test_without_options_it_is_the_papers_kind_of_traffic() -> None:
    """Poisson arrivals, Azure's lengths, a power law of exponent 1 over all adapters."""
    adapters = named_adapters(5)
    expected = make_workload(WorkloadSpec(2.0, 30.0), adapters, seed=3)
    assert expected == parsed().requests(2.0, 30.0, adapters, seed=3)


def test_equal_arguments_give_equal_requests() -> None:
    """And another seed gives others."""
    first, again, other = (parsed().requests(2.0, 30.0, ["a", "b"], seed) for seed in (1, 1, 2))
    assert first == again
    assert first != other


def test_random_lengths_are_fixed() -> None:
    """As vLLM's random dataset by default; its defaults are vLLM's, 1024 and 128."""
    given = parsed("--dataset-name", "random", "--random-input-len", "7", "--random-output-len=3")
    assert {(7, 3)} == {
        (request.input_tokens, request.output_tokens)
        for request in given.requests(5.0, 10.0, ["a"], 0)
    }
    assert 1024 + 128 == parsed("--dataset-name", "random").longest_tokens


def test_a_trace_is_replayed_at_the_wanted_rate(trace: str) -> None:
    """Its own times, twice as fast as its 1 request/s, and its lengths in order."""
    traffic = parsed("--dataset-path", trace)
    assert traffic.recorded_rate_per_s == pytest.approx(1.0)
    requests = traffic.requests(2.0, 1.9, ["a"], 0)
    assert [0.0, 0.5, 0.75, 1.5] == pytest.approx([request.arrival_s for request in requests])
    assert [100, 200, 300, 400] == [request.input_tokens for request in requests]


def test_a_traces_lengths_may_have_other_arrivals(trace: str) -> None:
    """Then the rate is not the trace's."""
    traffic = parsed("--dataset-path", trace, "--arrivals", "poisson")
    assert traffic.arrivals == Poisson()
    assert traffic.recorded_rate_per_s is None


def test_a_traces_popularity_is_taken_over_by_order(trace: str) -> None:
    """x, the most frequent, becomes the first adapter, y the second."""
    traffic = parsed("--dataset-path", trace, "--popularity", "trace")
    requests = traffic.requests(1.0, 3.9, ["first", "second", "third"], 0)
    assert ["first", "second", "first", "first"] == [request.adapter for request in requests]


def test_adapters_that_have_the_traces_names_keep_them(trace: str) -> None:
    """Whatever their order."""
    traffic = parsed("--dataset-path", trace, "--popularity", "trace")
    requests = traffic.requests(1.0, 3.9, ["y", "x"], 0)
    assert ["x", "y", "x", "x"] == [request.adapter for request in requests]


def test_a_trace_of_more_adapters_than_served_is_refused(trace: str) -> None:
    """Two names cannot become one."""
    traffic = parsed("--dataset-path", trace, "--popularity", "trace")
    with pytest.raises(ConfigError, match="names 2 adapters, the server has 1"):
        traffic.requests(1.0, 3.9, ["only"], 0)


@pytest.mark.parametrize(
    ("burstiness", "cv"), [("1", 1.0), ("0.25", 2.0), ("4", 0.5), ("0.015625", 8.0)]
)
def test_burstiness_is_vllms(burstiness: str, cv: float) -> None:
    """The shape of gamma gaps: their coefficient of variation is its inverse root."""
    assert Gamma(cv) == parsed("--burstiness", burstiness).arrivals


def test_arrivals_are_chosen_by_name(trace: str) -> None:
    """A burstiness alone asks for gamma; a burstiness of 1 is Poisson's and contradicts nothing."""
    assert Recorded() == parsed("--dataset-path", trace).arrivals
    assert Gamma(1.0) == parsed("--arrivals", "gamma").arrivals
    assert Poisson() == parsed("--arrivals", "poisson", "--burstiness", "1").arrivals


def test_popularity_is_a_power_law() -> None:
    """Of exponent 2 over two adapters: 4 of 5 for the first; of exponent 0: half."""
    for alpha, share in (("2", 0.8), ("0", 0.5)):
        requests = parsed("--popularity", alpha).requests(100.0, 40.0, ["a", "b"], 0)
        uses = Counter(request.adapter for request in requests)
        assert uses["a"] / len(requests) == pytest.approx(share, abs=0.03)


def test_other_laws_reach_the_workload() -> None:
    """Ranks, drift, the base model's share and length limits are what `make_workload` takes."""
    traffic = parsed(
        *("--rank-alpha=0.5", "--shift-s=9", "--base-share=0.25"),
        *("--length-factor=0.5", "--max-input-tokens=300", "--max-output-tokens=40"),
    )
    assert (0.5, 9.0, 0.25) == (traffic.rank_alpha, traffic.shift_s, traffic.base_share)
    assert (0.5, (1, 300), (1, 40)) == (
        traffic.lengths.factor,
        traffic.lengths.input_tokens,
        traffic.lengths.output_tokens,
    )
    assert traffic.requests(5.0, 20.0, [NamedAdapter("a", 8), NamedAdapter("b", 16)], 0)


def test_without_adapters_all_requests_are_the_base_models() -> None:
    """Whatever the popularity."""
    assert {None} == {request.adapter for request in parsed().requests(5.0, 10.0, [], 0)}


@pytest.mark.parametrize("context_tokens", [8192, 2048, 100, 3])
def test_lengths_are_fitted_to_a_context(context_tokens: int) -> None:
    """One factor makes all shorter; what fits already stays as it is."""
    for traffic in (parsed(), parsed("--max-input-tokens", "900", "--length-factor", "9")):
        fitted = traffic.fitted(context_tokens)
        assert fitted.longest_tokens <= context_tokens
        assert (fitted == traffic) == (traffic.longest_tokens <= context_tokens)


def test_a_context_that_holds_no_request_is_refused() -> None:
    """A prompt and an answer are two tokens, and one more for rounding."""
    with pytest.raises(ConfigError, match="a context of 2 tokens holds no request"):
        parsed().fitted(2)


def test_a_description_is_plain_and_whole(trace: str) -> None:
    """JSON without infinities, the same words as the options'."""
    for words in ((), ("--dataset-path", trace, "--popularity", "trace"), ("--burstiness", "0.25")):
        described = parsed(*words).described()
        assert described == json.loads(json.dumps(described, allow_nan=False))
    described = parsed("--dataset-path", trace, "--popularity", "trace").described()
    assert ("trace", trace, 4, "recorded", "trace", 250.0) == tuple(
        described[key]
        for key in (
            *("dataset_name", "dataset_path", "trace_requests", "arrivals", "popularity"),
            "mean_input_tokens",
        )
    )
    assert 0.25 == parsed("--burstiness", "0.25").described()["burstiness"]
    assert math.inf == parsed().shift_s
    assert parsed().described()["shift_s"] is None


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (("--dataset-name", "trace"), "needs --dataset-path"),
        (("--dataset-name", "random", "--dataset-path", "x"), "reads no file"),
        (("--random-input-len", "9"), "are of --dataset-name random, not azure"),
        (("--arrivals", "recorded"), "needs --dataset-path"),
        (("--arrivals", "poisson", "--burstiness", "0.5"), "is of --arrivals gamma, not poisson"),
        (("--popularity", "trace"), "needs a trace that names adapters"),
        (("--dataset-path", "/nowhere"), "cannot be read"),
    ],
)
def test_what_cannot_be_meant_is_refused(words: tuple[str, ...], message: str) -> None:
    """With the way out."""
    with pytest.raises(ConfigError, match=message):
        parsed(*words)


def test_laws_of_drawn_adapters_do_not_go_with_a_traces_own(trace: str) -> None:
    """The trace names each request's adapter already."""
    with pytest.raises(ConfigError, match="leave --rank-alpha and --shift-s out"):
        parsed("--dataset-path", trace, "--popularity", "trace", "--shift-s", "9")


@pytest.mark.parametrize(
    "words",
    [
        *(("--popularity", "-1"), ("--popularity", "zipf"), ("--base-share", "1.5")),
        *(("--burstiness", "0"), ("--max-input-tokens", "2.5"), ("--shift-s", "inf")),
        *(("--length-factor", "nan"), ("--random-input-len", "0"), ("--dataset-name", "sharegpt")),
    ],
)
def test_impossible_numbers_are_refused(
    words: tuple[str, str], capsys: pytest.CaptureFixture[str]
) -> None:
    """The message names the option."""
    with pytest.raises(SystemExit):
        parsed(*words)
    assert words[0] in capsys.readouterr().err
