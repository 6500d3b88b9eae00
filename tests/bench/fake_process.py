"""The fake OpenAI server in a process of its own, which may be killed."""

import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path

from chameleon_lora.servers.process import ServerSpec, free_port, running_server
from tests.bench import fake_openai


@contextlib.contextmanager
def fake_process(folder: Path, *words: str) -> Iterator[str]:
    """Its base URL; `words` are its options and `folder` gets its log."""
    port = free_port()
    command = [sys.executable, str(Path(fake_openai.__file__)), str(port), *words]
    spec = ServerSpec(command, port, folder / "server.log", {}, stop_limit_s=1.0)
    with running_server(spec) as base_url:
        yield base_url
