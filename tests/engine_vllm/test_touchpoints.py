"""What the installed vLLM has, and how a missing piece is told."""

import pytest

from chameleon_lora.engine_vllm.touchpoints import (
    SCHEDULER,
    TESTED,
    Touchpoint,
    check,
    check_engine,
)
from chameleon_lora.errors import UnsupportedEngineError

pytestmark = pytest.mark.vllm


@pytest.fixture(autouse=True)
def version() -> str:
    """The version of the installed vLLM."""
    return str(pytest.importorskip("vllm").__version__)


def test_the_installed_vllm_has_every_piece() -> None:
    """The version at hand is one Chameleon runs on."""
    check_engine()


@pytest.mark.parametrize(
    ("point", "lack"),
    [
        (Touchpoint("vllm.nowhere", "Thing"), "vllm.nowhere.Thing"),
        (Touchpoint(SCHEDULER, "Schedulex"), f"{SCHEDULER}.Schedulex"),
        (Touchpoint(SCHEDULER, "Scheduler.plan_all"), f"{SCHEDULER}.Scheduler.plan_all"),
        (
            Touchpoint(SCHEDULER, "Scheduler.add_request", ("request", "lane", "quota")),
            f"parameter lane, quota of {SCHEDULER}.Scheduler.add_request",
        ),
    ],
    ids=["module", "class", "method", "parameters"],
)
def test_a_missing_piece_is_told_with_version_and_way_out(
    point: Touchpoint, lack: str, version: str
) -> None:
    """vLLM's version, the piece, and the versions that have it."""
    with pytest.raises(UnsupportedEngineError) as caught:
        check((point,))
    text = str(caught.value)
    assert text.startswith(f"vLLM {version} lacks {lack}. ")
    assert all(tested in text for tested in TESTED)


def test_all_missing_pieces_are_told_at_once() -> None:
    """What is there is not named, what is not is named in order."""
    here, first, second = (Touchpoint(SCHEDULER, n) for n in ("Scheduler", "First", "Second"))
    with pytest.raises(UnsupportedEngineError) as caught:
        check((first, here, second))
    assert f"lacks {SCHEDULER}.First; {SCHEDULER}.Second. " in str(caught.value)
