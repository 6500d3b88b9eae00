"""How a server is started: the command lines of stock vLLM and of Chameleon, and what a CPU needs."""

import platform
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.adapters import AdapterFolder
from chameleon_lora.servers.process import ServerSpec, free_port

BASE_MODEL = "base"
PORT = "{port}"
"""Stands for the port in a command line that is made before the port is known."""

CPU_ENVIRONMENT: Mapping[str, str] = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",  # a core for the API server and the client
    "VLLM_NO_USAGE_STATS": "1",
}
"""For servers on a CPU: no network, a small KV cache, a core left to others."""
RUNTIME_LOADING: Mapping[str, str] = {"VLLM_ALLOW_RUNTIME_LORA_UPDATING": "1"}
"""Opens vLLM's routes that load and unload adapters."""


@dataclass(frozen=True, slots=True)
class EngineShape:
    """The sizes of an engine on a CPU, the same for both servers of a comparison.

    Attributes:
        slots: distinct adapters in one batch.
        max_rank: what each slot is padded to.
        seats: requests that run at a time.
        batch_tokens: most tokens of one engine step.
        context_tokens: most tokens of a prompt and its answer.
        target_modules: the layers that adapters change; empty for all that vLLM can.
    """

    slots: int = 4
    max_rank: int = 16
    seats: int = 8
    batch_tokens: int = 256
    context_tokens: int = 512
    target_modules: tuple[str, ...] = ()

    @property
    def flags(self) -> tuple[str, ...]:
        """These sizes as vLLM's flags, for a base model of the name BASE_MODEL.

        float32: bfloat16 is slow on CPUs without AMX. Eager: compiling takes longer than a short
        run. Target modules: otherwise vLLM pays for LoRA in layers that no adapter changes.
        """
        modules = ("--lora-target-modules", *self.target_modules) if self.target_modules else ()
        return (
            *("--served-model-name", BASE_MODEL),
            *("--max-loras", str(self.slots), "--max-lora-rank", str(self.max_rank)),
            *modules,
            *("--max-num-seqs", str(self.seats)),
            *("--max-num-batched-tokens", str(self.batch_tokens)),
            *("--max-model-len", str(self.context_tokens)),
            *("--dtype", "float32", "--enforce-eager"),
            *("--uvicorn-log-level", "warning"),
        )


@dataclass(frozen=True, slots=True)
class ServedModel:
    """A model with a folder of adapters, and how it is served, whoever serves it.

    Attributes:
        adapters: their names; stock vLLM is told each, Chameleon finds them in `adapters_dir`.
        flags: vLLM's flags that all servers get alike.
    """

    model: str
    adapters_dir: Path
    adapters: tuple[str, ...]
    flags: tuple[str, ...] = ()

    @classmethod
    def of(cls, model: Path, adapters_dir: Path, shape: EngineShape) -> "ServedModel":
        """The model with each adapter that is in the folder now, and the shape's flags."""
        return cls(str(model), adapters_dir, AdapterFolder(adapters_dir).names(), shape.flags)


def stock_command(served: ServedModel, extra: Sequence[str] = ()) -> tuple[str, ...]:
    """vLLM's own server, told every adapter, with all of them in host memory: its best setting."""
    modules = [f"{name}={served.adapters_dir / name}" for name in served.adapters]
    return (
        *(sys.executable, "-m", "vllm.entrypoints.openai.api_server"),
        *("--model", served.model, "--enable-lora"),
        *("--max-cpu-loras", str(len(served.adapters))),
        *_LISTENING,
        *served.flags,
        *extra,
        *("--lora-modules", *modules),
    )


def chameleon_command(served: ServedModel, extra: Sequence[str] = ()) -> tuple[str, ...]:
    """`chameleon serve` on the folder of adapters, with the same flags as stock."""
    return (
        *(sys.executable, "-m", "chameleon_lora.cli.main", "serve", served.model),
        *("--adapters", str(served.adapters_dir)),
        *_LISTENING,
        *served.flags,
        *extra,
    )


def on_port(command: Sequence[str], port: int) -> list[str]:
    """The words with `{port}` replaced in each; other braces stay."""
    return [word.replace(PORT, str(port)) for word in command]


def cpu_server(
    command: Sequence[str],
    log: Path,
    environment: Mapping[str, str] | None = None,
    start_limit_s: float = 300.0,
) -> ServerSpec:
    """Such a server on a free port of this machine's CPU; `environment` goes before the usual one."""
    port = free_port()
    variables = {**CPU_ENVIRONMENT, **(environment or {})}
    return ServerSpec(on_port(command, port), port, log, variables, start_limit_s)


def this_machine() -> str:
    """What servers are started on here, in words."""
    info = Path("/proc/cpuinfo")
    lines = info.read_text(encoding="utf-8").splitlines() if info.is_file() else []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    cpu = f"{len(names)} x {names[0]}" if names else platform.processor() or platform.machine()
    return f"{cpu}, {platform.system()} {platform.release().partition('-')[0]}"


_LISTENING = ("--host", "127.0.0.1", "--port", PORT)
