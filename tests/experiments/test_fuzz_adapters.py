"""The fuzzer of the validator finds what it is there to find: with a fault made on purpose, and none without."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import chameleon_lora

ROOT = Path(__file__).parents[2]
PLANTED = {  # file, what stands there, what is put there instead, and a finding
    "none": ("adapters/header.py", "", "", "1000 inputs, 0 findings"),
    "a bound that is missing": (
        "adapters/header.py",
        "if weights_bytes < expected:",
        "if False:",
        "headers: ",
    ),
    "an exception that nobody catches": (
        "adapters/untrusted.py",
        "except (ValueError, RecursionError) as error:",
        "except RecursionError as error:",
        "inspect_adapter raises",
    ),
    "two answers to one question": (
        "adapters/inspect.py",
        "    if info.problems:",
        "    if info.problems[1:]:",
        "require_servable takes what inspect_adapter refuses",
    ),
}


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.long
@pytest.mark.parametrize("fault", PLANTED)
def test_a_planted_fault_is_found(tmp_path: Path, fault: str) -> None:
    """In a copy of the package, by a thousand inputs; the exit status says so."""
    pytest.importorskip("vllm")
    name, there, instead, words = PLANTED[fault]
    copy = tmp_path / "chameleon_lora"
    shutil.copytree(Path(chameleon_lora.__file__).parent, copy)
    text = (copy / name).read_text()
    assert there in text
    (copy / name).write_text(text.replace(there, instead))
    command = [sys.executable, "-m", "experiments.fuzz_adapters", "--inputs", "1000"]
    done = subprocess.run(
        [*command, "--keep", str(tmp_path / "kept")],
        cwd=ROOT,
        env=os.environ | {"PYTHONPATH": str(tmp_path)},
        stdout=subprocess.PIPE,
        text=True,
        check=False,
    )
    assert words in done.stdout
    assert int(fault != "none") == done.returncode
