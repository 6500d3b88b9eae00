"""Starting and stopping a server process, on small servers of Python's own."""

import os
import select
import socket
import sys
from pathlib import Path

import pytest

from chameleon_lora.errors import BenchError
from chameleon_lora.servers.process import ServerSpec, free_port, running_server

HEALTHY = """
import http.server, pathlib, subprocess, sys
class Handler(http.server.BaseHTTPRequestHandler):
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.end_headers()
child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
pathlib.Path(sys.argv[2]).write_text(str(child.pid))
print("serving", flush=True)
http.server.HTTPServer(("127.0.0.1", int(sys.argv[1])), Handler).serve_forever()
"""
BROKEN = "import sys; print('the model is missing'); sys.exit(3)"
DEAF = "import time; print('still loading', flush=True); time.sleep(600)"


def spec(tmp_path: Path, program: str, start_limit_s: float = 30.0) -> ServerSpec:
    """The program's port is its first argument, the file for its child's number the second."""
    port = free_port()
    command = [sys.executable, "-c", program, str(port), str(tmp_path / "child")]
    return ServerSpec(command, port, tmp_path / "log", {}, start_limit_s, stop_limit_s=5.0)


def handle_of_child(tmp_path: Path) -> int:
    """A handle of the server's child process, which becomes readable when the child has ended."""
    return os.pidfd_open(int((tmp_path / "child").read_text("utf8")))


def has_ended(handle: int, patience_s: float) -> bool:
    """Does the process of the handle end within the patience?"""
    return bool(select.select([handle], [], [], patience_s)[0])


@pytest.mark.slow
def test_a_healthy_server_is_there_inside_and_gone_after(tmp_path: Path) -> None:
    """Inside the block the server's child runs; afterwards it does not, and nobody answers."""
    wanted = spec(tmp_path, HEALTHY)
    with running_server(wanted) as base_url:
        assert base_url == f"http://127.0.0.1:{wanted.port}"
        child = handle_of_child(tmp_path)
        assert not has_ended(child, 0.0)
    assert has_ended(child, 5.0)
    with pytest.raises(ConnectionRefusedError):
        socket.create_connection(("127.0.0.1", wanted.port))


@pytest.mark.slow
def test_an_error_inside_the_block_still_stops_the_server(tmp_path: Path) -> None:
    """The caller's error goes on, the server does not."""
    handles: list[int] = []

    def fail_inside() -> None:
        with running_server(spec(tmp_path, HEALTHY)):
            handles.append(handle_of_child(tmp_path))
            raise KeyError

    with pytest.raises(KeyError):
        fail_inside()
    assert has_ended(handles[0], 5.0)


def test_a_server_that_ends_is_reported_with_its_log(tmp_path: Path) -> None:
    """Status 3 and the line it printed are in the message."""
    wanted = spec(tmp_path, BROKEN)
    with pytest.raises(BenchError, match=r"status 3(.|\n)*the model is missing"):
        running_server(wanted).__enter__()


def test_a_server_that_is_never_ready_is_stopped_at_the_limit(tmp_path: Path) -> None:
    """After half a second without an answer: the limit and the log, and no process left."""
    with pytest.raises(BenchError, match=r"not ready after 0\.5 s(.|\n)*log"):
        running_server(spec(tmp_path, DEAF, start_limit_s=0.5)).__enter__()


def test_a_server_gets_our_environment_and_its_own(tmp_path: Path) -> None:
    """PATH is ours, GREETING its own."""
    program = "import os; print(os.environ['GREETING'], os.environ['PATH']); raise SystemExit(1)"
    wanted = ServerSpec([sys.executable, "-c", program], 1, tmp_path / "log", {"GREETING": "moin"})
    with pytest.raises(BenchError):
        running_server(wanted).__enter__()
    assert f"moin {os.environ['PATH']}\n" == wanted.log.read_text("utf8")


def test_a_port_is_one_that_no_connection_is_given() -> None:
    """Two who ask at the same time get different ones, and clients' own ports are others."""
    ports = {free_port() for _ in range(20)}
    assert len(ports) > 10
    first_of_clients = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert max(ports) < first_of_clients
