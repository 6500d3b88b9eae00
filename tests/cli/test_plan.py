"""`chameleon plan`: the table, the JSON, exit codes and messages."""

import argparse
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lora.cli import plan
from chameleon_lora.cli.main import main
from chameleon_lora.planning.question import PlanQuestion
from chameleon_lora.sim.profile import known_profiles, profile_text
from chameleon_lora.workload.arrivals import Poisson, Recorded
from tests.sim.plan_questions import SMALL

LENGTHS = ("--input-tokens", "200", "--output-tokens", "10")
FAST = ("--adapters", "4", "--ranks", "8", *LENGTHS, "--slo-ttft", "20", "--seconds", "60")
TOP_KEYS = {
    *("profile", "engine", "adapters", "traffic", "slo", "alone_ttft_mean_s", "alone_ttft_p99_s"),
    *("sustained_per_s", "rate_per_s", "replicas", "replica", "memory", "binding"),
}


@pytest.fixture
def profile(tmp_path: Path) -> str:
    """The path of a small engine's profile."""
    path = tmp_path / "small.toml"
    path.write_text(profile_text(SMALL), "utf8")
    return str(path)


@pytest.fixture
def trace(tmp_path: Path) -> str:
    """The path of a trace: 3 requests in 2 s, of two adapters."""
    rows = [(0, "a", 100, 10), (500, "b", 200, 20), (2_000, "a", 300, 30)]
    lines = [
        {"timestamp": ms, "adapter": adapter, "input_length": i, "output_length": o}
        for ms, adapter, i, o in rows
    ]
    path = tmp_path / "trace.jsonl"
    path.write_text("".join(json.dumps(line) + "\n" for line in lines), "utf8")
    return str(path)


def asked(*words: str) -> PlanQuestion:
    """The question that a command line puts."""
    parser = argparse.ArgumentParser()
    plan.add_parser(parser.add_subparsers())
    return plan.asked(parser.parse_args(["plan", *words]))


@pytest.mark.slow
def test_the_table_says_what_was_asked_and_found(
    profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Load, replicas, latency, hit rate, memory and what binds; the time it took goes to stderr."""
    assert 0 == main(["plan", "--profile", profile, *FAST, "--rate", "10"])
    printed = capsys.readouterr()
    titles = {line[:24].strip() for line in printed.out.splitlines()}
    assert {
        *("profile", "engine", "adapters", "traffic", "objective", "sustainable load", "replicas"),
        *("TTFT", "between tokens", "adapter hit rate", "host link busy", "slots", "KV cache"),
        *("requests", "idle", "host, all adapters", "binds"),
    } <= titles
    assert "arithmetic from data sheets, measured by nobody" in printed.out
    assert printed.err.startswith("chameleon plan: took ")


@pytest.mark.slow
def test_json_holds_the_plan_and_is_the_same_each_time(
    profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Two runs print the same bytes; what is no number in JSON is null."""
    words = ["plan", "--profile", profile, *FAST, "--rate", "10", "--json"]
    assert 0 == main(words)
    first = capsys.readouterr().out
    assert 0 == main(words)
    assert first == capsys.readouterr().out
    answer = json.loads(first)
    assert TOP_KEYS == set(answer)
    assert {"ttft_s": 20.0, "gap_s": None} == answer["slo"]
    assert 10.0 == answer["rate_per_s"] == answer["replicas"] * answer["replica"]["rate_per_s"]
    assert isinstance(answer["binding"]["constraint"], str)


def test_the_profiles_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    """Each name, one a line, without a profile being asked for."""
    assert 0 == main(["plan", "--list"])
    names = [line.split()[0] for line in capsys.readouterr().out.splitlines()]
    assert list(known_profiles()) == names


def test_an_objective_that_no_load_meets_ends_with_one(
    profile: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Asked rightly, but there is no answer."""
    assert 1 == main(["plan", "--profile", profile, *FAST, "--slo-ttft", "0.1"])
    assert "the objective (P99 TTFT 0.1 s) binds" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "message"),
    [
        ((), "--profile is missing"),
        (("--profile", "gpt"), "there is no profile 'gpt'"),
        (("--profile", "llama-7b-a40-48g", "--max-loras", "500"), "use fewer slots"),
        (("--profile", "llama-7b-a40-48g", "--max-lora-rank", "16"), "raise --max-lora-rank"),
        (("--profile", "llama-7b-a40-48g", "--max-num-seqs", "4000"), "lower --max-num-seqs"),
        (("--profile", "llama-7b-a40-48g", "--length-factor", "50"), "shorter requests"),
        (
            ("--profile", "llama-7b-a40-48g", "--popularity", "uniform", "--alpha", "1"),
            "leave one of them out",
        ),
        (("--profile", "llama-7b-a40-48g", "--policy", "slora", "--max-loras", "8"), "no slots"),
        (("--profile", "llama-7b-a40-48g", "--trace", "missing.csv"), "cannot be read"),
    ],
    ids=lambda value: " ".join(value) if isinstance(value, tuple) else "",
)
def test_what_cannot_be_planned_ends_with_two(
    words: tuple[str, ...], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """One line on standard error that says what stands against it, and nothing else."""
    assert 2 == main(["plan", *words])
    printed = capsys.readouterr()
    assert "" == printed.out
    assert printed.err.startswith("chameleon plan: ")
    assert message in printed.err
    assert 1 == len(printed.err.splitlines())


@pytest.mark.parametrize(
    "words",
    [
        *(("--rate", "0"), ("--rate", "inf"), ("--slo", "x"), ("--adapters", "1.5")),
        *(("--ranks", "8,x"), ("--max-lora-rank", "7"), ("--policy", "best"), ("--seconds", "-1")),
    ],
    ids=" ".join,
)
def test_what_is_no_value_is_refused_by_the_parser(words: tuple[str, ...]) -> None:
    """Exit code 2, before any file is read."""
    with pytest.raises(SystemExit) as caught:
        main(["plan", "--profile", "llama-7b-a40-48g", *words])
    assert 2 == caught.value.code


def test_lengths_are_stretched_to_the_means_given(profile: str) -> None:
    """Prompts of 200 tokens on average and answers as long as Azure's, spread as Azure's are."""
    lengths = asked("--profile", profile, "--ranks", "8", "--input-tokens", "200").lengths
    prompts = [pair[0] for pair in lengths]
    assert pytest.approx(200.0, abs=1.0) == sum(prompts) / len(prompts)
    assert max(prompts) > 3 * 200
    assert pytest.approx(211.0, abs=1.0) == sum(pair[1] for pair in lengths) / len(lengths)


def test_a_trace_gives_its_arrivals_adapters_lengths_and_rate(profile: str, trace: str) -> None:
    """Two requests after the first in 2 s: 1 request/s; the first adapter has two requests."""
    question = asked("--profile", profile, "--trace", trace, "--ranks", "8,16")
    assert [("a", 8), ("b", 16)] == [(a.name, a.rank) for a in question.adapters]
    assert 1.0 == question.rate_per_s
    assert isinstance(question.traffic.arrivals, Recorded)
    assert ((100, 10), (200, 20), (300, 30)) == question.lengths
    assert ["a", "b", "a", "a"] == [r.adapter for r in question.requests(1.0, 1.0)][:4]


def test_a_traces_adapters_may_be_drawn_instead(profile: str, trace: str) -> None:
    """With --adapters, popularity is the command line's; a rate given goes before the trace's."""
    question = asked(
        *("--profile", profile, "--trace", trace, "--adapters", "3", "--rate", "7"),
        *("--popularity", "uniform"),
    )
    assert (3, 7.0) == (len(question.adapters), question.rate_per_s)
    assert (0.0, False) == (question.traffic.alpha, question.traffic.recorded_adapters)


@pytest.mark.parametrize("words", [("--alpha", "2"), ("--input-tokens", "9")], ids=" ".join)
def test_what_a_trace_says_is_not_said_twice(
    words: tuple[str, ...], profile: str, trace: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Popularity of a trace's adapters, and its lengths."""
    assert 2 == main(["plan", "--profile", profile, "--trace", trace, *words])
    assert re.search("(have their|has its) own", capsys.readouterr().err)


def test_slots_fit_the_adapters_unless_given(profile: str) -> None:
    """The least rank that vLLM takes: 64 for 8 and 48."""
    few = ("--profile", profile, "--max-loras", "2")
    assert 64 == asked(*few, "--ranks", "8,48").style.max_rank
    assert 16 == asked(*few, "--ranks", "8").style.max_rank
    assert 32 == asked(*few, "--ranks", "8", "--max-lora-rank", "32").style.max_rank


@pytest.mark.slow
def test_a_profile_without_slots_plans_an_engine_without(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adapters are used from host memory: no slots, none of the pool, no copies; nor S-LoRA's engine."""
    path = tmp_path / "cpu.toml"
    path.write_text(profile_text(replace(SMALL, in_host=True)), "utf8")
    words = ["plan", "--profile", str(path), *FAST]
    assert (True, True, 0) == (
        (style := asked(*words[1:]).style).is_paged,
        style.in_host,
        style.slots,
    )
    assert 0 == main([*words, "--json"])
    answer = json.loads(capsys.readouterr().out)
    memory = answer["memory"]
    assert (None, 0, 0) == (
        answer["engine"]["max_loras"],
        memory["slots_bytes"],
        memory["adapters_mean_bytes"],
    )
    assert memory["pool_bytes"] == memory["kv_cache_bytes"] > memory["requests_peak_bytes"] > 0
    assert "host link" not in {what_if["constraint"] for what_if in answer["binding"]["what_ifs"]}
    for more, reason in (
        (("--max-loras", "4"), "without slots"),
        (("--policy", "slora"), "copies"),
    ):
        assert 2 == main([*words, *more])
        assert reason in capsys.readouterr().err


def test_s_loras_engine_comes_with_its_policy(profile: str) -> None:
    """No slots, prompts in steps of their own; its seats may be set."""
    style = asked(
        *("--profile", profile, "--ranks", "8"), "--policy", "slora", "--max-num-seqs", "9"
    ).style
    assert (True, False, 0, 9) == (style.is_paged, style.mixes_prefill, style.slots, style.seats)


def test_without_a_trace_arrivals_are_poisson(profile: str) -> None:
    """And the objective is five times the mean without load."""
    question = asked("--profile", profile, "--ranks", "8")
    assert isinstance(question.traffic.arrivals, Poisson)
    assert (None, 5.0) == (question.objective.ttft_s, question.objective.ttft_factor)
