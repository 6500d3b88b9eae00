"""The disk that stalls or fails, in a process of its own."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from chameleon_lora.errors import BenchError
from faults import fault_injector
from faults.fault_injector import FaultInjector

READ = """
import pathlib, sys, time
start_s, wall_s = time.monotonic(), time.time()
try:
    text = pathlib.Path(sys.argv[1]).read_text()
except OSError as error:
    text = f"errno {error.errno}"
print(text, time.monotonic() - start_s, wall_s)
"""


@pytest.fixture
def disk(tmp_path: Path) -> FaultInjector:
    """One of this test's own."""
    try:
        return FaultInjector.make(tmp_path / "cache", tmp_path / "control")
    except BenchError as error:
        pytest.skip(str(error))


def read(disk: FaultInjector, path: Path) -> tuple[str, float, float]:
    """What a process with that disk reads, how long that takes it, and what time it thinks it is."""
    command = [sys.executable, "-c", READ, str(path)]
    output = subprocess.check_output(command, env=os.environ | disk.environment, text=True)
    text, took_s, wall_s = output.rsplit(maxsplit=2)
    return text, float(took_s), float(wall_s)


def test_only_the_files_that_are_meant_are_slow_or_broken(
    disk: FaultInjector, tmp_path: Path
) -> None:
    """While it is so, and not after."""
    bad, good = tmp_path / "bad", tmp_path / "good"
    bad.write_text("bad")
    good.write_text("good")
    with disk.stalling("/bad", 0.3):
        assert 0.3 <= read(disk, bad)[1]
        assert "good" == read(disk, good)[0]
    with disk.failing("/bad"):
        assert ("errno 5", "good") == (read(disk, bad)[0], read(disk, good)[0])
    assert "bad" == read(disk, bad)[0]


def test_the_wall_clock_jumps_and_comes_back(disk: FaultInjector, tmp_path: Path) -> None:
    """By as much as is said; waiting is not concerned."""
    path = tmp_path / "any"
    path.write_text("any")
    before_s = read(disk, path)[2]
    with disk.clock_jumped(-86_400.0):
        jumped_s = read(disk, path)[2]
    assert 86_300.0 < before_s - jumped_s < 86_401.0
    assert before_s <= read(disk, path)[2]


def test_without_a_compiler_there_is_an_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It says what to install."""
    monkeypatch.setenv("PATH", str(tmp_path))
    with pytest.raises(BenchError, match=r"none of cc, gcc, clang .* way out: install gcc"):
        FaultInjector.make(tmp_path, tmp_path / "control")
    assert fault_injector.SOURCE.is_file()
