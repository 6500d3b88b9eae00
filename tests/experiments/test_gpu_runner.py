"""The GPU run's stages: which is next; as processes, resumed, ended in time, none spoils another."""

import os
import signal
import sys
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from chameleon_lora.engine_vllm.event_log import stopwatch_s
from experiments.gpu.outcome import (
    FOUND_ENDING,
    Outcome,
    Status,
    place_of,
    read_outcome,
    write_outcome,
)
from experiments.gpu.runner import RESERVE_S, Begin, Runner, Step, decide, in_order, known_of

FOUND = "import pathlib, sys; pathlib.Path(sys.argv[1]).write_text('{\"figure\": 7}')"
REASONED = FOUND.replace("7", '7, "reason": "an answer differs"')
FAILS = f"print('TypeError: no such flag'); {REASONED}; sys.exit(1)"
DIES = "import os; print('no memory'); os.abort()"
HANGS = f"{FOUND}; import signal; print('begun', flush=True); signal.pause()"


def commands(out: Path, scripts: dict[str, str]) -> Callable[[str], list[str]]:
    """Stages that are scripts; they are told where what they find goes."""

    def command(name: str) -> list[str]:
        place = place_of(out, name)
        place.parent.mkdir(exist_ok=True)
        return [sys.executable, "-c", scripts[name], str(place.with_suffix(FOUND_ENDING))]

    return command


def runner(
    out: Path, scripts: dict[str, str], limit_s: float = 1e6, estimate_s: float = 1.0
) -> Runner:
    """For these stages, in this order, without a GPU."""
    steps = [Step(name, estimate_s) for name in scripts]
    return Runner(
        out, steps, limit_s, None, commands(out, scripts), {}, stopwatch_s, lambda _: None
    )


def outcome(out: Path, name: str) -> Outcome:
    """How the stage ended."""
    found = read_outcome(out, name)
    assert found is not None
    return found


def test_a_stage_that_fails_is_recorded_with_its_reason_and_the_next_goes_on(
    tmp_path: Path,
) -> None:
    """What it had found is kept; one that dies without a word is told by its log."""
    assert runner(tmp_path, {"fails": FAILS, "dies": DIES, "works": FOUND}).run()
    fails, dies, works = (outcome(tmp_path, name) for name in ("fails", "dies", "works"))
    reason = "an answer differs; in its log: TypeError: no such flag"
    assert (Status.FAILED, reason) == (fails.status, fails.reason)
    assert {"figure": 7} == fails.figures
    assert Status.FAILED is dies.status
    assert "no memory" in dies.reason
    assert (Status.DONE, {"figure": 7}, "CPU") == (works.status, works.figures, works.device)


def test_the_next_call_does_only_what_is_left(tmp_path: Path) -> None:
    """A stage that is done is not started: here it would die."""
    assert runner(tmp_path, {"first": FOUND, "second": FAILS}).run()
    assert runner(tmp_path, {"first": DIES, "second": FOUND}).run()
    assert [Status.DONE] * 2 == [outcome(tmp_path, name).status for name in ("first", "second")]


def test_a_stage_that_does_not_fit_is_left_for_the_next_call(tmp_path: Path) -> None:
    """It is not begun, and a longer call does it."""
    assert runner(tmp_path, {"long": FOUND}, limit_s=60.0, estimate_s=100.0).run()
    assert Status.LEFT is outcome(tmp_path, "long").status
    assert runner(tmp_path, {"long": FOUND}, limit_s=200.0, estimate_s=100.0).run()
    assert Status.DONE is outcome(tmp_path, "long").status


def test_what_was_left_or_skipped_counts_as_never_tried(tmp_path: Path) -> None:
    """So it has its turn before what has failed."""
    for status in Status:
        write_outcome(tmp_path, Outcome(status.name, status))
    assert ["DONE", "FAILED"] == sorted(known_of(tmp_path))


def test_a_call_too_short_does_not_hide_how_a_stage_failed(tmp_path: Path) -> None:
    """The reason of the earlier call stays."""
    write_outcome(tmp_path, Outcome("proof", Status.FAILED, "an answer differs"))
    assert runner(tmp_path, {"proof": FOUND}, limit_s=1.0).run()
    assert "an answer differs" == outcome(tmp_path, "proof").reason


@pytest.mark.slow
def test_a_stage_that_takes_too_long_is_ended_and_keeps_what_it_found(tmp_path: Path) -> None:
    """The call ends in time, with the reserve left."""
    assert runner(tmp_path, {"hangs": HANGS}, limit_s=15.0).run()
    found = outcome(tmp_path, "hangs")
    assert (Status.FAILED, {"figure": 7}) == (found.status, found.figures)
    assert "its limit" in found.reason


@pytest.fixture
def heeds_ctrl_c() -> Iterator[None]:
    """This process, even if it was started in a shell's background, where SIGINT is ignored."""
    former = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, former)


@pytest.mark.slow
@pytest.mark.usefixtures("heeds_ctrl_c")
def test_a_call_that_is_ended_leaves_what_is_done(tmp_path: Path) -> None:
    """The stage under way is recorded too, and no later one begins."""
    running = runner(tmp_path, {"works": FOUND, "hangs": HANGS, "never": FOUND})
    log = tmp_path / "logs" / "hangs.log"

    def interrupt() -> None:
        while not (log.exists() and log.read_text()):
            os.sched_yield()
        os.kill(os.getpid(), signal.SIGINT)

    threading.Thread(target=interrupt, daemon=True).start()
    assert not running.run()
    assert Status.DONE is outcome(tmp_path, "works").status
    assert "the call was ended" == outcome(tmp_path, "hangs").reason
    assert read_outcome(tmp_path, "never") is None


MACHINE, PROOF, COMPARE = (
    Step("machine", 10.0),
    Step("proof", 100.0, needs=("machine",), needs_cuda=True),
    Step("compare", 400.0, needs=("machine",)),
)
DONE = {"machine": Outcome("machine", Status.DONE)}


def test_what_is_done_is_not_run_again_and_what_failed_comes_last() -> None:
    """A stage that fails each time never keeps the others from their turn."""
    known = {
        **DONE,
        "proof": Outcome("proof", Status.FAILED, "an answer differs"),
    }
    assert [COMPARE, PROOF] == in_order([MACHINE, PROOF, COMPARE], known)


def test_a_stage_begins_if_its_estimate_fits_and_never_outlives_the_call() -> None:
    """Its limit ends before the call does, with the reserve for the report."""
    found = decide(COMPARE, DONE, 400.0 + RESERVE_S, has_cuda=True)
    assert Begin(400.0) == found


def test_a_stage_that_does_not_fit_is_left_and_says_what_it_would_take() -> None:
    """Neither a second too little nor a call that is over lets it begin."""
    for left_s in (400.0 + RESERVE_S - 1.0, 5.0, -3.0):
        found = decide(COMPARE, DONE, left_s, has_cuda=True)
        assert isinstance(found, Outcome)
        assert Status.LEFT is found.status
        assert "about 400 s" in found.reason


def test_a_stage_waits_for_those_it_stands_on() -> None:
    """The reason names them."""
    found = decide(COMPARE, {}, 1e6, has_cuda=True)
    assert Outcome("compare", Status.LEFT, "needs machine, not done") == found


def test_without_cuda_a_stage_that_needs_it_is_skipped_with_the_reason() -> None:
    """Whatever else it needs."""
    assert Outcome("proof", Status.SKIPPED, "needs CUDA") == decide(PROOF, {}, 1e6, has_cuda=False)


def test_a_stage_that_hangs_is_ended_while_there_is_time_for_others() -> None:
    """A long call does not wait for a short stage to its end."""
    found = decide(PROOF, DONE, 1e6, has_cuda=True)
    assert isinstance(found, Begin)
    assert found.limit_s < 1000.0


@pytest.mark.usefixtures("heeds_ctrl_c")
def test_a_call_that_is_ended_while_a_stage_starts_records_it(tmp_path: Path) -> None:
    """The signal may come before the stage's process is waited for, or before there is one."""
    start = commands(tmp_path, {"starts": FOUND})

    def interrupted(name: str) -> list[str]:
        os.kill(os.getpid(), signal.SIGINT)
        return start(name)

    steps = [Step("starts", 1.0)]
    ended = Runner(tmp_path, steps, 1e6, None, interrupted, {}, stopwatch_s, lambda _: None)
    assert not ended.run()
    assert "the call was ended" == outcome(tmp_path, "starts").reason
