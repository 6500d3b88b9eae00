"""A server under test: a child process that is waited for, and stopped with all its children."""

import contextlib
import os
import secrets
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.errors import BenchError

_POLL_S = 0.25
_PROBE_LIMIT_S = 2.0
_SHOWN_LINES = 20
_PORTS = range(12_000, 32_000)


@dataclass(frozen=True, slots=True)
class ServerSpec:
    """How to start one server.

    Attributes:
        command: the program and its arguments.
        port: where the command makes it listen, on 127.0.0.1.
        log: file that gets everything the server prints.
        environment: set for the server on top of our own environment.
        start_limit_s: how long it may take until GET /health answers 200.
        stop_limit_s: how long it may take to end after SIGTERM before it is killed.
    """

    command: Sequence[str]
    port: int
    log: Path
    environment: Mapping[str, str]
    start_limit_s: float = 300.0
    stop_limit_s: float = 20.0

    @property
    def base_url(self) -> str:
        """The server's URL on this machine's loopback, without a slash at the end."""
        return f"http://127.0.0.1:{self.port}"


def free_port() -> int:
    """A TCP port that nobody has; drawn by chance, so that two who ask at once get different ones.

    It lies below those that Linux gives to clients, so no connection takes it before a server does.

    Raises:
        BenchError: a hundred ports were taken.
    """
    for _ in range(100):
        port = _PORTS[secrets.randbelow(len(_PORTS))]
        with socket.socket() as probe, contextlib.suppress(OSError):
            probe.bind(("127.0.0.1", port))
            return port
    raise BenchError(f"no port of {_PORTS.start} to {_PORTS.stop - 1} is free")


@contextlib.contextmanager
def running_server(spec: ServerSpec) -> Iterator[str]:
    """The base URL of a healthy server, which is stopped on the way out, whatever happened inside.

    Raises:
        BenchError: it ended by itself before it was healthy, or took longer than the limit; the
            message shows the last lines of its log.
    """
    with running_process(spec):
        yield spec.base_url


@contextlib.contextmanager
def running_process(spec: ServerSpec) -> Iterator[subprocess.Popen[bytes]]:
    """The first process of a healthy server, which is stopped on the way out, as by `running_server`."""
    spec.log.parent.mkdir(parents=True, exist_ok=True)
    with spec.log.open("wb") as log:
        process = subprocess.Popen(
            list(spec.command),
            stdout=log,
            stderr=subprocess.STDOUT,
            stdin=subprocess.DEVNULL,
            env=os.environ | spec.environment,
            # A process group of its own gets the signals. Not a session of its own: Linux shares out the
            # processor by session (autogroup), and a client beside busy engines then waits for a second.
            process_group=0,
        )
    try:
        _wait_until_healthy(process, spec)
        yield process
    finally:
        _stop(process, spec.stop_limit_s)


def _wait_until_healthy(process: subprocess.Popen[bytes], spec: ServerSpec) -> None:
    deadline_s = time.monotonic() + spec.start_limit_s  # noqa: TID251 - an edge's own clock
    while time.monotonic() < deadline_s:  # noqa: TID251 - likewise
        if process.poll() is not None:
            raise BenchError(
                f"the server ended with status {process.returncode} before it was ready; "
                f"{_log_end(spec.log)}"
            )
        if _is_healthy(spec.base_url):
            return
        time.sleep(_POLL_S)
    raise BenchError(
        f"the server was not ready after {spec.start_limit_s:g} s, its limit; {_log_end(spec.log)}"
    )


def _is_healthy(base_url: str) -> bool:
    try:
        with urllib.request.urlopen(f"{base_url}/health", timeout=_PROBE_LIMIT_S) as response:
            return bool(response.status == 200)
    except (urllib.error.URLError, ConnectionError, TimeoutError):
        return False


def _log_end(log: Path) -> str:
    lines = log.read_text(encoding="utf8", errors="replace").splitlines()[-_SHOWN_LINES:]
    return f"{log} ends with:\n" + "\n".join(lines)


def _stop(process: subprocess.Popen[bytes], limit_s: float) -> None:
    """Ends the process and its whole group, gently first."""
    _signal_group(process, signal.SIGTERM)
    with contextlib.suppress(subprocess.TimeoutExpired):
        process.wait(limit_s)
    # Also after a clean end: a child that outlived its parent is still in the group.
    _signal_group(process, signal.SIGKILL)
    process.wait()


def _signal_group(process: subprocess.Popen[bytes], number: signal.Signals) -> None:
    with contextlib.suppress(ProcessLookupError):
        os.killpg(process.pid, number)  # the group has its first process's number
