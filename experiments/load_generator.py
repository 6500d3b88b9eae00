"""Can the load generator keep up with many streams on one core?

Run: `.venv/bin/python -m experiments.load_generator`. Needs two cores.

500 streams of 20 tokens/s each, from the fake endpoint of the tests on one core to `replay` on
another. Prints one line a run, then the medians:
offered and received tokens/s while all streams are under way, the client's CPU time over wall time,
P99 lateness of sends, P99 deviation of the gaps between tokens from 1/rate (the endpoint's own
included), and P99 of the time between the endpoint's write of a token and the client's time stamp.
That time is counted from the quickest token of the run. Where other programs use the same cores,
`core_wait_share` is the part of the time that the client was ready and had to wait for its core;
then CPU time says more than lateness does.
Options: --streams, --tokens-per-s, --seconds, --runs, --asyncio (not uvloop), --profile FILE (of
cProfile, the last run).
"""

import argparse
import asyncio
import cProfile
import json
import os
import resource
import statistics
import sys
import tempfile
import urllib.request
from collections.abc import Sequence
from contextlib import nullcontext
from itertools import pairwise
from pathlib import Path

from chameleon_lora.bench.replay import Target, replay, run_loop
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.metrics.summary import percentile
from chameleon_lora.servers.process import ServerSpec, free_port, running_server
from chameleon_lora.workload.requests import TimedRequest

ENDPOINT = Path(__file__).resolve().parents[1] / "tests" / "bench" / "fake_openai.py"
CLIENT_CORE, ENDPOINT_CORE = 0, 1
RAMP_S = 2.0
PROMPT_TOKENS = 64


def main() -> None:
    """Runs, and the medians of their figures."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--streams", type=int, default=500)
    parser.add_argument("--tokens-per-s", type=float, default=20.0)
    parser.add_argument("--seconds", type=float, default=20.0)
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--asyncio", action="store_true", help="not uvloop")
    parser.add_argument("--profile", type=Path)
    given = parser.parse_args()
    os.sched_setaffinity(0, {CLIENT_CORE})
    runs = [measure(given) for _ in range(given.runs)]
    print_line("medians", {name: statistics.median(run[name] for run in runs) for name in runs[0]})


def measure(given: argparse.Namespace) -> dict[str, float]:
    """The figures of one run, with an endpoint of its own."""
    run = asyncio.run if given.asyncio else run_loop
    streams, rate = given.streams, given.tokens_per_s
    tokens = round((RAMP_S + given.seconds) * rate)
    requests = [
        TimedRequest(i, RAMP_S * i / streams, f"stream-{i}", PROMPT_TOKENS, tokens)
        for i in range(streams)
    ]
    port = free_port()
    words = ["taskset", "-c", str(ENDPOINT_CORE), sys.executable, str(ENDPOINT), str(port)]
    command = [*words, "--tokens-per-s", str(rate)]
    with tempfile.TemporaryDirectory() as folder:
        spec = ServerSpec(command, port, Path(folder) / "log", {})
        with running_server(spec) as url:
            profile = cProfile.Profile() if given.profile else None
            before_s, waited_before_s = cpu_s(), core_wait_s()
            with profile or nullcontext():
                records = run(replay(Target(url, "base", (100, 30_000)), requests))
            spent_s, waited_s = cpu_s() - before_s, core_wait_s() - waited_before_s
            with urllib.request.urlopen(f"{url}/written") as reply:
                written_s = json.load(reply)
    if profile:
        profile.dump_stats(given.profile)
    for record in records:
        assert record.error is None, record.error
        assert tokens == len(record.token_times_s) == record.output_tokens
    figures = figures_of(records, written_s, rate)
    end_s = max(record.end_s for record in records)
    figures["core_wait_share"] = waited_s / end_s
    figures["cpu_share"] = spent_s / end_s
    figures["cpu_us_per_token"] = spent_s / (streams * tokens) * 1e6
    print_line("run", figures)
    return figures


def figures_of(
    records: Sequence[RequestRecord], written_s: dict[str, list[float]], rate: float
) -> dict[str, float]:
    """Of one run; the steady part is from the last stream's first token to the first stream's last."""
    begin_s = max(record.token_times_s[0] for record in records)
    end_s = min(record.token_times_s[-1] for record in records)
    steady = sum(begin_s <= at_s < end_s for record in records for at_s in record.token_times_s)
    gaps_off_s = [abs(gap_s - 1.0 / rate) for r in records for gap_s in r.token_gaps_s]
    written_off_s = [
        abs(after - before - 1.0 / rate)
        for times in written_s.values()
        for before, after in pairwise(times)
    ]
    ways_s = [
        read - written
        for record in records
        for read, written in zip(record.token_times_s, written_s[record.adapter or ""], strict=True)
    ]
    quickest_s = min(ways_s)
    return {
        "offered_tokens_per_s": len(records) * rate,
        "received_tokens_per_s": steady / (end_s - begin_s),
        "send_late_p99_ms": percentile([r.lateness_s for r in records], 99.0) * 1e3,
        "gap_off_p50_ms": percentile(gaps_off_s, 50.0) * 1e3,
        "gap_off_p99_ms": percentile(gaps_off_s, 99.0) * 1e3,
        "endpoint_gap_off_p99_ms": percentile(written_off_s, 99.0) * 1e3,
        "stamp_late_p50_ms": percentile([way_s - quickest_s for way_s in ways_s], 50.0) * 1e3,
        "stamp_late_p99_ms": percentile([way_s - quickest_s for way_s in ways_s], 99.0) * 1e3,
    }


def cpu_s() -> float:
    """CPU time of this process so far, its children's not."""
    usage = resource.getrusage(resource.RUSAGE_SELF)
    return usage.ru_utime + usage.ru_stime


def core_wait_s() -> float:
    """For how long the main thread was ready to run and did not, so far."""
    return int(Path("/proc/self/schedstat").read_text("utf8").split()[1]) / 1e9


def print_line(what: str, figures: dict[str, float]) -> None:
    """One line of names and values."""
    print(what, *(f"{name}={value:.3f}" for name, value in figures.items()), flush=True)


if __name__ == "__main__":
    main()
