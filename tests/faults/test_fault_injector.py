"""The disk that stalls or fails, in a process of its own."""

import errno
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


ERRORS = """
import os, pathlib, sys
path = pathlib.Path(sys.argv[1])
def errno_of(work):
    try:
        work()
    except OSError as error:
        return error.errno
    return 0
file = path.open("r+b", buffering=0)
print(errno_of(lambda: os.pwrite(file.fileno(), b"x", 0)), errno_of(lambda: file.write(b"x")))
print(errno_of(lambda: path.with_name("bad-folder").mkdir()), errno_of(path.with_name("bad-new").touch))
print(errno_of(path.read_bytes))
"""


@pytest.mark.parametrize(
    ("error", "name", "expected"),
    [
        (errno.ENOSPC, "bad", [errno.ENOSPC] * 4 + [0]),
        (errno.ENOSPC, "good", [0] * 5),
        (0, "bad", [0] * 5),
    ],
)
def test_a_full_disk_takes_nothing_more(
    disk: FaultInjector, tmp_path: Path, error: int, name: str, expected: list[int]
) -> None:
    """Neither bytes nor names, on the paths that are meant; what is there can be read."""
    folder = tmp_path / name
    folder.mkdir()
    (folder / "file").write_text("any")
    with disk.failing("/bad/", error):
        command = [sys.executable, "-c", ERRORS, str(folder / "file")]
        said = subprocess.check_output(command, env=os.environ | disk.environment, text=True)
    assert expected == [int(word) for word in said.split()]


def test_without_descriptors_nothing_is_opened(disk: FaultInjector, tmp_path: Path) -> None:
    """Of the files that are meant."""
    (tmp_path / "bad").write_text("bad")
    with disk.failing("/bad", errno.EMFILE):
        assert f"errno {errno.EMFILE}" == read(disk, tmp_path / "bad")[0]
    assert "bad" == read(disk, tmp_path / "bad")[0]


def test_memory_that_is_free_is_given_back_at_our_word(disk: FaultInjector) -> None:
    """By a process that looks at a clock; what else it was told stays as it is."""
    script = (
        "import psutil, sys, time\n"
        "pieces = [bytes(100_000) for _ in range(1000)]\n"
        "last = [bytes(100_000)]\n"
        "del pieces\n"
        "before = psutil.Process().memory_info().rss\n"
        "print(flush=True)\n"
        "sys.stdin.readline()\n"
        "time.time()\n"
        "print(before - psutil.Process().memory_info().rss, flush=True)\n"
    )
    env = os.environ | disk.environment | {"MALLOC_TRIM_THRESHOLD_": str(1 << 30)}
    command, pipe = [sys.executable, "-c", script], subprocess.PIPE
    with subprocess.Popen(command, env=env, stdin=pipe, stdout=pipe, text=True) as process:
        assert process.stdout is not None
        process.stdout.readline()
        with disk.failing("/bad"):
            disk.trim()
        said, _ = process.communicate("\n")
    assert 50 << 20 < int(said)


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
