"""What observers write."""

from pathlib import Path

import pytest

from chameleon_lora.compare.observations import Observations, bytes_so_far, read_observations
from chameleon_lora.errors import BenchError

LOAD = '{"event": "disk_load", "seconds": 0.5, "in_step": true, "adapter_id": 1}\n'
AHEAD = '{"event": "disk_load", "seconds": 9.0, "in_step": false, "adapter_id": 2}\n'
ACTIVATE = '{"event": "activate", "seconds": 0.25, "in_step": true, "adapter_id": 1}\n'


def test_loads_are_counted_and_stalls_summed(tmp_path: Path) -> None:
    """Two loads, one of them outside a step, and an activation: 0.5 + 0.25 s stalled."""
    path = tmp_path / "seen.jsonl"
    path.write_text(LOAD + AHEAD + ACTIVATE, "utf8")
    assert read_observations(path) == Observations(cold_loads=2, activations=1, stalled_s=0.75)


def test_what_came_before_can_be_skipped(tmp_path: Path) -> None:
    """Only the activation came after the mark."""
    path = tmp_path / "seen.jsonl"
    path.write_text(LOAD, "utf8")
    mark = bytes_so_far(path)
    path.write_text(LOAD + ACTIVATE, "utf8")
    assert read_observations(path, mark) == Observations(0, 1, 0.25)


def test_without_an_observer_there_is_nothing_to_say(tmp_path: Path) -> None:
    """No file is not the same as no loads."""
    assert read_observations(tmp_path / "none.jsonl") is None
    assert bytes_so_far(tmp_path / "none.jsonl") == 0


def test_half_a_last_line_is_left_out(tmp_path: Path) -> None:
    """A killed server may leave one."""
    path = tmp_path / "seen.jsonl"
    path.write_text(LOAD + ACTIVATE[:20], "utf8")
    assert read_observations(path) == Observations(1, 0, 0.5)


@pytest.mark.parametrize("line", ["no json\n", '{"event": "disk_load"}\n', "[1]\n"])
def test_a_line_of_another_kind_is_an_error(tmp_path: Path, line: str) -> None:
    """The message shows the line."""
    path = tmp_path / "seen.jsonl"
    path.write_text(line, "utf8")
    with pytest.raises(BenchError, match="which is no observation"):
        read_observations(path)
