"""Chameleon's lines go where vLLM's go, whoever sets up logging and however."""

import ast
import subprocess
import sys
from pathlib import Path

import pytest

from chameleon_lora import engine_vllm

HOME = Path(engine_vllm.__file__).parent
SCRIPT = """
import json, logging.config, pathlib, sys
from chameleon_lora.engine_vllm.api.tenant_file import follow_tenants
own = {"class": "logging.StreamHandler", "stream": "ext://sys.stdout", "formatter": "own"}
logging.config.dictConfig({
    "version": 1,  # existing loggers are disabled unless they are named, or are below one
    "formatters": {"own": {"format": "own %(levelname)s %(message)s"}},
    "handlers": {"own": own},
    "loggers": {"vllm": {"handlers": ["own"], "level": sys.argv[2], "propagate": False}},
})
logging.basicConfig(stream=sys.stdout, level="ERROR")  # as what vLLM's API server imports does
follow_tenants(pathlib.Path(sys.argv[1]), 1.0)
"""


def test_every_logger_is_below_vllms() -> None:
    """The root logger is anybody's: what vLLM's API server imports sets it to ERROR."""
    names = [
        (path.name, ast.unparse(call.args[0]))
        for path in HOME.rglob("*.py")
        for call in ast.walk(ast.parse(path.read_text()))
        if isinstance(call, ast.Call) and ast.unparse(call.func).endswith("getLogger") and call.args
    ]
    assert len(names) > 5
    others = {"'vllm'"}  # whose handlers are looked through
    assert {"f'vllm.{__name__}'"} == {name for _, name in names} - others


@pytest.mark.parametrize(("level", "lines"), [("INFO", 1), ("WARNING", 0)])
def test_vllms_logging_rules_ours(tmp_path: Path, level: str, lines: int) -> None:
    """A file for VLLM_LOGGING_CONFIG_PATH that names vLLM alone: handler, level and form, and once."""
    path = tmp_path / "tenants.toml"
    path.write_text(f"[tenants.acme]\nkeys = ['sha256:{'0' * 64}']\n")
    words = [sys.executable, "-c", SCRIPT, str(path), level]
    told = subprocess.run(words, check=True, capture_output=True, text=True, timeout=120)
    expected = f"own INFO Read 1 tenants from {path}\n" * lines
    assert (expected, "") == (told.stdout, told.stderr)
