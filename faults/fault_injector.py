"""A server's disk that stalls, fails or is full, and its clock that jumps, at our word.

A small library is put before the C library's own calls of the server and its children (LD_PRELOAD),
so the server's code, stock vLLM's too, meets the same errors as from a real disk.
"""

import contextlib
import errno
import hashlib
import mmap
import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.errors import BenchError

SOURCE = Path(__file__).with_name("fault_injector.c")
_CONTROL = struct.Struct("<ddii232s")  # as in fault_injector.c
COMPILERS = ("cc", "gcc", "clang")


@dataclass(frozen=True, slots=True)
class FaultInjector:
    """The disk and the clock of one server under test.

    Attributes:
        environment: to start the server with.
    """

    environment: dict[str, str]
    _control: mmap.mmap

    @classmethod
    def make(cls, cache_dir: Path, control: Path) -> "FaultInjector":
        """Compiles the library once, and makes the file through which it is told what to do.

        Raises:
            BenchError: there is no C compiler.
        """
        library = _library(cache_dir)
        control.write_bytes(bytes(_CONTROL.size))
        with control.open("r+b") as file:
            shared = mmap.mmap(file.fileno(), _CONTROL.size)
        environment = {"LD_PRELOAD": str(library), "FAULT_INJECTOR_CONTROL": str(control)}
        return cls(environment, shared)

    @contextlib.contextmanager
    def stalling(self, match: str, seconds: float) -> Iterator[None]:
        """While the block runs, opening a file whose path holds `match` takes so long."""
        with self._set(0.0, seconds, 0, match):
            yield

    @contextlib.contextmanager
    def failing(self, match: str, error: int = errno.EIO) -> Iterator[None]:
        """While the block runs, a file whose path holds `match` cannot be used.

        EIO comes from reading it, ENOSPC from writing or making it, EMFILE from opening it.
        """
        with self._set(0.0, 0.0, error, match):
            yield

    def trim(self) -> None:
        """Within a second or two each process of the server gives back memory that it does not use."""
        self._write(trims=self._trims + 1)

    @contextlib.contextmanager
    def clock_jumped(self, seconds: float) -> Iterator[None]:
        """While the block runs, the wall clock is so far ahead (or behind, below 0)."""
        with self._set(seconds, 0.0, 0, ""):
            yield

    @contextlib.contextmanager
    def _set(self, jump_s: float, stall_s: float, error: int, match: str) -> Iterator[None]:
        self._write(jump_s, stall_s, error, match)
        try:
            yield
        finally:
            self._write()

    @property
    def _trims(self) -> int:
        """How often it was asked for."""
        return int(_CONTROL.unpack(self._control[:])[3])

    def _write(
        self,
        jump_s: float = 0.0,
        stall_s: float = 0.0,
        error: int = 0,
        match: str = "",
        trims: int | None = None,
    ) -> None:
        trims = self._trims if trims is None else trims
        self._control[:] = _CONTROL.pack(jump_s, stall_s, error, trims, match.encode())


def _library(cache_dir: Path) -> Path:
    digest = hashlib.sha256(SOURCE.read_bytes()).hexdigest()[:12]
    target = cache_dir / f"fault-injector-{digest}.so"
    if target.exists():
        return target
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        raise BenchError(
            f"none of {', '.join(COMPILERS)} is installed, and a disk that fails needs a C "
            "compiler; way out: install gcc"
        )
    cache_dir.mkdir(parents=True, exist_ok=True)
    made = target.with_suffix(f".{os.getpid()}")
    command = [compiler, "-shared", "-fPIC", "-O2", "-o", str(made), str(SOURCE), "-ldl"]
    result = subprocess.run(command, capture_output=True, text=True, check=False)
    if result.returncode:
        raise BenchError(f"{' '.join(command)} failed: {result.stderr.strip()}")
    return made.replace(target)
