"""The two servers that the demo compares: how each is started."""

from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.compare.arms import STOCK, ServedModel, arm_of
from chameleon_lora.compare.demo_adapters import TARGET_MODULES, adapter_names

BASE_MODEL_NAME = "base"


@dataclass(frozen=True, slots=True)
class ServerSetup:
    """What both servers have in common.

    Attributes:
        slots: distinct adapters in one batch.
        max_rank: what each slot is padded to.
        seats: requests that run at a time.
        batch_tokens: most tokens of one engine step.
        context_tokens: most tokens of a prompt and its answer.
    """

    model_dir: Path
    adapters_dir: Path
    slots: int = 4
    max_rank: int = 16
    seats: int = 8
    batch_tokens: int = 256
    context_tokens: int = 512


def stock_command(setup: ServerSetup, port: int) -> list[str]:
    """vLLM's own server with every adapter registered by name."""
    return arm_of(STOCK, served(setup)).on(port)


def chameleon_command(setup: ServerSetup, port: int) -> list[str]:
    """The same server with Chameleon in it, which finds the adapters by their folder."""
    return arm_of("chameleon", served(setup)).on(port)


def served(setup: ServerSetup) -> ServedModel:
    """What both serve, and the flags that both get alike.

    float32: bfloat16 is slow on CPUs without AMX. Eager: compiling takes longer than the demo.
    Target modules: otherwise vLLM pays for LoRA in layers that no adapter changes.
    """
    flags = (
        *("--served-model-name", BASE_MODEL_NAME),
        *("--max-loras", str(setup.slots), "--max-lora-rank", str(setup.max_rank)),
        *("--lora-target-modules", *TARGET_MODULES),
        *("--max-num-seqs", str(setup.seats)),
        *("--max-num-batched-tokens", str(setup.batch_tokens)),
        *("--max-model-len", str(setup.context_tokens)),
        *("--dtype", "float32", "--enforce-eager"),
        *("--uvicorn-log-level", "warning"),
    )
    names = adapter_names(setup.adapters_dir)
    return ServedModel(str(setup.model_dir), setup.adapters_dir, names, flags)


def server_environment(observations: Path) -> dict[str, str]:
    """For both servers: no network, a small KV cache, a core left to others, the observer's file."""
    return {
        "HF_HUB_OFFLINE": "1",
        "VLLM_CPU_KVCACHE_SPACE": "1",
        "VLLM_CPU_NUM_OF_RESERVED_CPU": "1",
        "VLLM_NO_USAGE_STATS": "1",
        "CHAMELEON_OBSERVE": str(observations),
    }
