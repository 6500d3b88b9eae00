"""What a server's processes do by themselves, in processes that are named as vLLM names its own."""

import itertools
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager

import psutil
import pytest

from chameleon_lora.engine_vllm.processes import IDLE_S, TRIM_EVERY_S, IdleHeap

pytestmark = [
    pytest.mark.skipif(sys.platform != "linux", reason="as a server's processes are there"),
    pytest.mark.timeout(120),
]
SERVER = """
import multiprocessing, os, signal, sys, threading, types
from chameleon_lora.engine_vllm import processes
name, scheduler = sys.argv[1:]
processes.LOOK_S = processes.LAST_S = 0.05
config = types.SimpleNamespace(
    scheduler_config=types.SimpleNamespace(scheduler_cls=scheduler), shutdown_timeout=30
)
signal.signal(signal.SIGTERM, lambda *_: print("told", config.shutdown_timeout, flush=True))
for number in (signal.SIGINT, signal.SIGHUP):
    signal.signal(number, signal.SIG_DFL)  # whoever runs the tests, as nohup does, may ignore them
def run():
    processes.joining(lambda part, vllm_config: None)(None, config)
    print(os.getpid(), threading.active_count(), flush=True)
    for line in asked:
        print(line, end="", flush=True)
    threading.Event().wait()  # as one that hangs
child = multiprocessing.get_context("fork").Process(target=run, name=name)
asked = os.fdopen(os.dup(0))  # its sys.stdin becomes another
child.start()
child.join()
"""
OURS, STOCK = "chameleon_lora.engine_vllm.scheduler", "vllm.v1.core.sched.scheduler.Scheduler"


@contextmanager
def server(name: str, scheduler: str = OURS) -> Iterator[tuple[subprocess.Popen[str], int, int]]:
    """A process with one child: what the child is known by, its threads, and a line for each line."""
    command = [sys.executable, "-c", SERVER, name, scheduler]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout is not None
        child, threads = map(int, first.stdout.readline().split())
        try:
            yield first, child, threads
        finally:
            first.kill()
            if psutil.pid_exists(child):
                os.kill(child, signal.SIGKILL)


def answer(first: subprocess.Popen[str], question: str) -> str:
    """What the child says to a line, after whatever it said before."""
    assert first.stdin is not None
    assert first.stdout is not None
    first.stdin.write(f"{question}\n")
    first.stdin.flush()
    return first.stdout.readline().strip()


@pytest.mark.parametrize("name", ["EngineCore_DP0", "ApiServer_1", "VllmWorker-0"])
def test_a_process_whose_parent_was_killed_ends(name: str) -> None:
    """Told first, to wait for no client, then by force; a worker leaves the order to its engine."""
    with server(name) as (first, child, _):
        process = psutil.Process(child)
        first.kill()
        gone, _alive = psutil.wait_procs([process], timeout=60)
        assert [process] == gone
        said = first.stdout.read() if first.stdout is not None else ""
    assert ("" if name.startswith("VllmWorker") else "told 0\n") == said


@pytest.mark.parametrize(
    ("title", "is_ended"), [("VLLM::DPCoordinator", True), ("VLLM::Worker_DP0", False)]
)
def test_a_coordinator_whose_parent_was_killed_ends(title: str, is_ended: bool) -> None:
    """vLLM's own looks after nobody: an engine beside it ends it, and no other process."""
    pytest.importorskip("setproctitle")
    child = (
        f"import setproctitle, signal; setproctitle.setproctitle('{title}'); print(flush=True)\n"
        "signal.pause()"
    )
    beside = (
        "import subprocess\n"
        f"beside = subprocess.Popen([sys.executable, '-c', {child!r}], stdout=-1)\n"
        "beside.stdout.readline()\n"
        "print(beside.pid, flush=True)\n"
    )
    first_lines, _, rest = SERVER.partition("child = ")
    command = [sys.executable, "-c", f"{first_lines}{beside}child = {rest}", "EngineCore_DP0", OURS]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, text=True) as first:
        assert first.stdout is not None
        coordinator = psutil.Process(int(first.stdout.readline()))
        engine = psutil.Process(int(first.stdout.readline().split()[0]))
        first.kill()
        gone, _alive = psutil.wait_procs([engine], timeout=60)
        assert [engine] == gone
        if is_ended:
            assert [coordinator] == psutil.wait_procs([coordinator], timeout=60)[0]
        else:
            assert coordinator.is_running()
            coordinator.kill()


@pytest.mark.parametrize(
    ("name", "scheduler"), [("EngineCore_DP0", STOCK), ("VllmWorker-0", STOCK), ("trainer", OURS)]
)
def test_other_engines_and_programs_are_left_alone(name: str, scheduler: str) -> None:
    """No thread watches them: a program may run an engine of ours inside of itself."""
    with server(name, scheduler) as (_, _, threads):
        assert 1 == threads


@pytest.mark.parametrize("name", ["EngineCore", "VllmWorker-0"])
def test_what_a_terminal_sends_to_all_is_left_to_the_first_process(name: str) -> None:
    """It goes on answering; by SIGTERM an engine is told, and a worker is not."""
    with server(name) as (first, child, _):
        for number in (signal.SIGINT, signal.SIGHUP, signal.SIGTERM):
            os.kill(child, number)
        expected = "there" if name.startswith("VllmWorker") else "told 30"
        assert expected == answer(first, "there")


def looked(heap: IdleHeap, now_s: float, cpu_s: list[float]) -> list[float]:
    """When it was due, looked at once a second with that use of the processors."""
    used_s, due = 0.0, []
    for second, more_s in enumerate(cpu_s, 1):
        used_s += more_s
        if heap.is_due(now_s + second, used_s):
            due.append(now_s + second)
    return due


def test_memory_is_given_back_once_after_work() -> None:
    """When the process has been idle for a while, and not again before it has worked again."""
    idle = [0.01] * 300
    assert [100 + IDLE_S] == looked(IdleHeap(100.0, 0.0), 100.0, idle)
    assert [20 + IDLE_S, 321 + IDLE_S] == looked(
        IdleHeap(0.0, 0.0), 0.0, [0.9] * 20 + idle + [0.5] + idle
    )


def test_memory_is_given_back_once_a_minute_at_most() -> None:
    """However often work and rest take turns; never while it works."""
    turns = ([0.9] * 5 + [0.0] * 15) * 30
    due = looked(IdleHeap(0.0, 0.0), 0.0, turns)
    assert len(turns) // TRIM_EVERY_S - 1 <= len(due)
    assert all(later - earlier >= TRIM_EVERY_S for earlier, later in itertools.pairwise(due))
    assert [] == looked(IdleHeap(0.0, 0.0), 0.0, [0.2] * 300)


def test_a_heap_that_was_full_is_given_back() -> None:
    """A hundred MiB in small pieces, freed all but the last: without `trim` they stay resident."""
    script = (
        "import psutil\n"
        "from chameleon_lora.engine_vllm.processes import trim\n"
        "pieces = [bytes(100_000) for _ in range(1000)]\n"
        "last = [bytes(100_000)]\n"
        "del pieces\n"
        "before = psutil.Process().memory_info().rss\n"
        "trim()\n"
        "print(before - psutil.Process().memory_info().rss)\n"
    )
    command = [sys.executable, "-c", script]
    env = os.environ | {"MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    assert 50 << 20 < int(subprocess.check_output(command, env=env, text=True))
