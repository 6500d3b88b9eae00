"""The list of the GPU run's stages."""

from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lora.errors import ConfigError

pytest.importorskip("torch")
from experiments.gpu.scale import RunOptions, read_options, write_options
from experiments.gpu.stages import STAGES, chosen

pytestmark = pytest.mark.slow  # torch is imported
CALL_S = 540.0


def options(tmp_path: Path) -> RunOptions:
    """A run on a GPU."""
    return RunOptions(tmp_path / "out", tmp_path / "work")


def test_what_a_stage_needs_comes_before_it() -> None:
    """So that one call can do all."""
    names = [stage.name for stage in STAGES]
    assert len(names) == len({*names})
    for place, stage in enumerate(STAGES):
        assert {*stage.needs} <= {*names[:place]}


def test_a_call_of_nine_minutes_holds_each_stage(tmp_path: Path) -> None:
    """By the estimates."""
    steps = [stage.step(options(tmp_path)) for stage in STAGES]
    assert [] == [step.name for step in steps if step.estimate_s > CALL_S]


def test_stages_are_named_by_themselves_or_by_their_group() -> None:
    """In the run's order, whatever the words' order; an unknown word names those that there are."""
    assert not {stage.name for stage in STAGES} & {stage.group for stage in STAGES}
    words = ("compare", "basis")
    assert ["machine", "adapters", "compare"] == [stage.name for stage in chosen(words)]
    assert list(STAGES) == chosen(())
    with pytest.raises(ConfigError, match=r"no such stage; there are .*activation"):
        chosen(("fast",))


def test_a_dry_run_and_a_gpus_do_not_share_a_folder(tmp_path: Path) -> None:
    """What was asked for is read back as it was; the other kind is refused."""
    asked = replace(options(tmp_path), capacity=6.5, duration_s=15.0)
    write_options(asked)
    assert asked == read_options(asked.out)
    with pytest.raises(ConfigError, match="holds the results of a GPU"):
        write_options(replace(asked, is_dry=True))
