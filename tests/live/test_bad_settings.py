"""A wrong setting ends `chameleon serve` before anything starts."""

import socket
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
START_LIMIT_S = 120.0


def test_a_wrong_setting_ends_the_command_before_it_starts(tmp_path: Path) -> None:
    """It exits with 2, and one line that names the setting and what it takes."""
    command = [
        *(sys.executable, "-m", "chameleon_lora.cli.main", "serve", "no-such-model"),
        *("--adapters", str(tmp_path), "--set", "admission.bypass=nonsense"),
    ]
    result = subprocess.run(
        command, capture_output=True, text=True, timeout=START_LIMIT_S, check=False
    )
    assert 2 == result.returncode
    assert "" == result.stdout
    (line,) = result.stderr.splitlines()
    assert "'admission.bypass' is 'nonsense'; use one of" in line


@pytest.mark.long
def test_a_port_in_use_is_told_last(tmp_path: Path) -> None:
    """It exits with 1, before a model is looked for."""
    with socket.create_server(("127.0.0.1", 0)) as taken:
        command = [
            *(sys.executable, "-m", "chameleon_lora.cli.main", "serve", "no-such-model"),
            *("--adapters", str(tmp_path), "--host", "127.0.0.1"),
            *("--port", str(taken.getsockname()[1])),
        ]
        result = subprocess.run(
            command, capture_output=True, text=True, timeout=START_LIMIT_S, check=False
        )
    assert 1 == result.returncode
    assert "Address already in use" in result.stderr.splitlines()[-1]
