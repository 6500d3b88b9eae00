"""One run: sent, measured, written, also when it does not come to its end."""

import os
import signal
from collections.abc import Iterator
from pathlib import Path

import pytest

from chameleon_lora.bench.measuring import BenchResult, BenchRun, measure
from chameleon_lora.bench.replay import Progress, Target
from chameleon_lora.bench.run_folder import read_config, read_records
from chameleon_lora.metrics.serving import Window
from chameleon_lora.workload.requests import TimedRequest
from tests.bench.fake_process import fake_process

pytestmark = pytest.mark.slow  # a server's start takes a second

SERVER = ("--tokens-per-s", "20", "--adapters", "a,deadly")


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """A fake server in a process of its own, 20 tokens/s."""
    with fake_process(tmp_path_factory.mktemp("fake"), *SERVER) as base_url:
        yield base_url


def run_of(base_url: str, *requests: TimedRequest) -> BenchRun:
    """A run that counts all requests of its first 10 s."""
    target = Target(base_url, "base", (100, 200))
    return BenchRun(target, requests, Window(0.0, 10.0), {"rate_per_s": 1.0}, {"label": "x"}, 5.0)


def nobody(_: Progress) -> None:
    """Listens to no progress."""


def measured(run: BenchRun, folder: Path) -> BenchResult:
    """The run as it is, without progress."""
    return measure(run, folder, nobody, 1.0)


def test_a_whole_run_is_in_its_folder(server: str, tmp_path: Path) -> None:
    """Config, records, and a summary that begins with what is known before."""
    run = run_of(server, TimedRequest(0, 0.0, "a", 5, 2), TimedRequest(1, 0.1, None, 5, 2))
    found = measured(run, tmp_path / "run")
    assert (None, ()) == (found.stopped, found.errors)
    assert ("x", 2) == (found.result["label"], found.result["completed"])
    assert {"rate_per_s": 1.0, "is_partial": False, "stopped": None} == read_config(
        tmp_path / "run"
    )
    assert 2 == len(read_records(tmp_path / "run"))


def test_an_interrupt_keeps_what_came(server: str, tmp_path: Path) -> None:
    """A short answer is whole, a long one is given up, a later request is never sent."""
    requests = (
        TimedRequest(0, 0.0, "a", 5, 1),
        TimedRequest(1, 0.0, "a", 5, 1000),
        TimedRequest(2, 9.0, "a", 5, 1),
    )

    def interrupt(at: Progress) -> None:
        if at.completed:
            os.kill(os.getpid(), signal.SIGINT)

    found = measure(run_of(server, *requests), tmp_path / "run", interrupt, 0.1)
    assert found.stopped is not None
    assert found.stopped.startswith("interrupted ")
    records = read_records(tmp_path / "run")
    assert [True, False] == [record.is_completed for record in records]
    assert (records[1].error or "").startswith("given up: the run was stopped ")
    assert records[1].token_times_s
    config = read_config(tmp_path / "run")
    assert (True, found.stopped) == (config["is_partial"], config["stopped"])
    assert found.result["duration"] < 5.0


def test_an_interrupt_later_is_python_s_again(server: str, tmp_path: Path) -> None:
    """The run's handler ends with it."""
    before = signal.getsignal(signal.SIGINT)
    measured(run_of(server, TimedRequest(0, 0.0, "a", 5, 1)), tmp_path / "run")
    assert before == signal.getsignal(signal.SIGINT)


def test_a_server_that_dies_is_told(tmp_path: Path) -> None:
    """Killed while it answers: what was under way is lost, what comes later is refused."""
    requests = (
        TimedRequest(0, 0.0, "a", 5, 1),
        TimedRequest(1, 0.3, "deadly", 5, 5),
        TimedRequest(2, 1.0, "a", 5, 5),
    )
    with fake_process(tmp_path, *SERVER) as server:
        found = measured(run_of(server, *requests), tmp_path / "run")
    assert f"nobody answers at {server} any more" == found.stopped
    assert ["connection lost", "connection refused"] == sorted(e.cause for e in found.errors)
    assert (1, 2) == (found.result["completed"], found.result["failed"])
    assert read_config(tmp_path / "run")["is_partial"]
    assert 3 == len(read_records(tmp_path / "run"))


def test_an_adapter_the_server_does_not_know_fails_alone(server: str, tmp_path: Path) -> None:
    """The run is whole, for the server is still there."""
    run = run_of(server, TimedRequest(0, 0.0, "a", 5, 1), TimedRequest(1, 0.0, "zzz", 5, 1))
    found = measured(run, tmp_path / "run")
    assert found.stopped is None
    assert [("HTTP 404", 1, ("zzz",))] == [(e.cause, e.count, e.adapters) for e in found.errors]
