"""What goes wrong under a steady load costs nobody else anything, on a real server."""

import signal
from collections.abc import Iterable
from functools import partial
from typing import Any

import pytest

from faults.fault import InflictedFault
from faults.kinds import FAULTS, named
from faults.servers import RunningServer
from faults.trial import FaultRow, try_fault

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(1800)]
LONG = (
    *("5,000 adapters registered", "2,000 requests at once"),
    *("KV cache full, preemptions", "worker killed"),
    *("unfinished bodies", "peers that never read", "one EIO", "out of descriptors"),
)


def params(faults: Iterable[InflictedFault]) -> list[Any]:
    """Each under its name, the long ones marked."""
    return [
        pytest.param(fault, id=fault.name, marks=[pytest.mark.long] if fault.name in LONG else [])
        for fault in faults
    ]


SURVIVED = params(fault for fault in FAULTS if not fault.ends_server)
DEADLY = params(named(["engine killed", "worker killed"]))
(KILLED,) = named(["API server killed"])
(CTRL_C,) = named(["Ctrl-C"])
TOLD_OTHERWISE = [fault for fault in named(["with streams"]) if fault is not CTRL_C]


def assert_nothing_is_lost(row: FaultRow) -> None:
    """Each request ended once, with its own tokens or an error that gives a reason."""
    assert (0, 0, 0, 0) == (row.lost, row.wrong, row.disturbed, row.unexpected), row
    assert row.is_clean, row
    assert 0 < row.in_flight


@pytest.mark.parametrize("fault", SURVIVED)
def test_a_fault_costs_nobody_else_anything(server: RunningServer, fault: InflictedFault) -> None:
    """Requests it concerns end as they may, all others token for token as without it.

    The server is up, nothing is left running, and all KV memory has come back, counted block by block.
    Silence alone is looked at twice: a stall of the server's comes each time, one of the machine's not.
    """
    row = server.run(partial(try_fault, fault))
    if 0 < row.disturbed == row.silent:
        row = server.run(partial(try_fault, fault))
    assert_nothing_is_lost(row)
    assert row.exit_status is None


@pytest.mark.parametrize("fault", DEADLY)
def test_a_server_without_its_engine_tells_all_and_fails(
    doomed_server: RunningServer, fault: InflictedFault
) -> None:
    """Each request in flight is told, the exit status is 1, and no process is left over."""
    row = doomed_server.run(partial(try_fault, fault))
    assert_nothing_is_lost(row)
    assert 1 == row.exit_status


@pytest.mark.last
def test_a_server_that_is_told_to_end_finishes_its_streams(server: RunningServer) -> None:
    """Streams in flight end whole, later ones are told, the exit status is 0, no process is left."""
    row = server.run(partial(try_fault, CTRL_C))
    assert_nothing_is_lost(row)
    assert 0 == row.exit_status


@pytest.mark.long
@pytest.mark.parametrize("fault", TOLD_OTHERWISE, ids=lambda fault: fault.name)
def test_so_does_one_that_is_told_otherwise(
    doomed_server: RunningServer, fault: InflictedFault
) -> None:
    """By a container, which tells the first process alone, by a terminal that closes, by systemd."""
    row = doomed_server.run(partial(try_fault, fault))
    assert_nothing_is_lost(row)
    assert 0 == row.exit_status


@pytest.mark.long
def test_a_killed_server_leaves_no_process(doomed_server: RunningServer) -> None:
    """Streams are cut, for nobody is left to tell; engine and worker give their memory back."""
    row = doomed_server.run(partial(try_fault, KILLED))
    assert (0, -signal.SIGKILL) == (row.wrong, row.exit_status), row
    assert row.is_clean, row
