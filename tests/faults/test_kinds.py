"""Which faults there are, and how a table shows what they did."""

import dataclasses

import pytest

from chameleon_lora.errors import ConfigError
from faults.kinds import FAULTS, named
from faults.trial import FaultRow, line

ROW = FaultRow("a fault", 6, 40, 0, 1, 2, 0, 1.25, is_clean=True, exit_status=None, said="x | y")


def test_faults_are_found_by_a_part_of_their_names() -> None:
    """All of them without a word; names are unlike."""
    assert FAULTS == named([])
    assert len(FAULTS) == len({fault.name for fault in FAULTS})
    assert ["disk stalls for 10 s", "worker killed"] == [
        f.name for f in named(["worker", "stalls"])
    ]


def test_a_word_that_no_fault_has_is_an_error() -> None:
    """It tells the names there are."""
    with pytest.raises(ConfigError, match="no fault is named 'flood'; there are: truncated;"):
        named(["killed", "flood"])


def test_a_row_is_one_line() -> None:
    """Recovery in seconds, what became of the server, and what was said without bars."""
    assert "| a fault | 6 | 40 | 0 | 1 | 2 | 1.2 | up | x / y |" == line(ROW)
    dead = dataclasses.replace(ROW, recovery_s=None, exit_status=-9, is_clean=False)
    assert "| never | exit status -9 | x / y |" in line(dead)
