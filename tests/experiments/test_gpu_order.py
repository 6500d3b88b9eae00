"""Which stage of the GPU run is next, and whether it may begin."""

from experiments.gpu.order import RESERVE_S, Begin, Step, decide, in_order
from experiments.gpu.outcome import Outcome, Status

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
