"""How long does an activation hold up a step? Run: `.venv/bin/python -m experiments.activation`.

A real vLLM engine in this process (CPU, a Llama of random weights), four adapters in turn, each put
into a slot from three places: vLLM's own host cache, Chameleon's host image, and KV-cache blocks
that are scattered. The three take turns, so that noise of the machine meets them alike. Prints median
milliseconds, megabytes and the ratio to vLLM's own.
Options: --rank, --activations, --block-size, --adjacent.
"""

import argparse
import os
import random
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

os.environ["VLLM_LOGGING_LEVEL"] = "ERROR"  # read when vLLM is imported

from vllm import LLM
from vllm.lora.request import LoRARequest
from vllm.v1.worker import lora_model_runner_mixin

from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.engine_vllm.config import CONFIG_KEY
from chameleon_lora.engine_vllm.event_log import stopwatch_s
from chameleon_lora.engine_vllm.messages import (
    ActivateAdapter,
    Activated,
    DemoteAdapter,
    LoadAdapter,
    Loaded,
    PromoteAdapter,
    Promoted,
)
from chameleon_lora.engine_vllm.worker.kv_pages import kv_pages_of
from chameleon_lora.engine_vllm.worker.lora_manager import manager_class
from experiments.gpu.folders import ensure_model
from experiments.gpu.scale import Shape

SHAPE = Shape("activation", 1024, 2816, 8, 16, 4, 1024, 256, "float32")
ADAPTERS = 4
TURNS = 5
SLOT = 0
IN_SLOTS = {CONFIG_KEY: {"serving": {"lora_backend": "slots"}}}
"""As on a GPU; a CPU's engine has no slots otherwise."""


def start_engine(model: Path, rank: int, block_size: int) -> Any:
    """An engine in this process, with Chameleon's LoRA manager."""
    os.environ.update(
        VLLM_ENABLE_V1_MULTIPROCESSING="0",
        VLLM_CPU_KVCACHE_SPACE="1",
        VLLM_NO_USAGE_STATS="1",
        HF_HUB_OFFLINE="1",
    )
    lora_model_runner_mixin.LRUCacheWorkerLoRAManager = manager_class()
    return LLM(
        str(model),
        skip_tokenizer_init=True,
        load_format="dummy",
        enable_lora=True,
        max_loras=2,
        max_cpu_loras=ADAPTERS + 1,
        max_lora_rank=rank,
        max_model_len=SHAPE.context_tokens,
        max_num_seqs=4,
        max_num_batched_tokens=SHAPE.context_tokens,
        block_size=block_size,
        dtype=SHAPE.dtype,
        enforce_eager=True,
        disable_log_stats=True,
        additional_config=IN_SLOTS,
    )


class Stage:
    """One engine's LoRA manager with the adapters in vLLM's host cache and in Chameleon's."""

    def __init__(self, llm: Any, folders: dict[int, Path]) -> None:
        self._llm = llm  # to be kept: it takes its KV cache with it
        core = llm.llm_engine.engine_core.engine_core
        runner = core.model_executor.driver_worker.worker.model_runner
        manager = runner.lora_manager
        self.adapters = manager.adapters
        self.adapters.attach(runner)
        self.nbytes = 0
        self._slots = manager._adapter_manager  # noqa: SLF001  # vLLM's
        self._runner = runner
        self._is_paged = False
        self._stock = {
            n: manager._load_adapter(LoRARequest(f"a{n}", n, str(f)))  # noqa: SLF001  # vLLM's
            for n, f in folders.items()
        }
        self.adapters.execute([LoadAdapter(n, f"a{n}", str(f)) for n, f in folders.items()])
        for ack in self._acks_of(Loaded):
            self.nbytes = ack.nbytes

    def begin_stock(self) -> None:
        """The slots are vLLM's, its host cache full."""
        self.adapters.lend_slots()
        for model in self._stock.values():
            if model.id not in self._slots.list_adapters():
                self._slots.add_adapter(model)

    def activate_stock(self, number: int) -> float:
        """Seconds, into a slot that is free."""
        for other in self._stock:
            self._slots.deactivate_adapter(other)
        start = stopwatch_s()
        self._slots.activate_adapter(number)
        return stopwatch_s() - start

    def begin_host(self) -> None:
        """The slots are Chameleon's, no adapter is in KV blocks."""
        self.adapters.forget_slots()
        self.adapters.execute([DemoteAdapter(n) for n in self._stock])
        self._is_paged = False

    def begin_pages(self, is_adjacent: bool) -> None:
        """The slots are Chameleon's, each adapter is in KV blocks."""
        self.adapters.forget_slots()
        pages = kv_pages_of(self._runner)
        numbers = list(range(1, pages.num_blocks))
        if not is_adjacent:
            random.Random(0).shuffle(numbers)
        count = pages.blocks_for(self.nbytes)
        for adapter_id in self._stock:
            blocks, numbers = tuple(numbers[:count]), numbers[count:]
            self.adapters.execute([PromoteAdapter(adapter_id, 0, blocks)])
        self._acks_of(Promoted)
        self._is_paged = True

    def activate_ours(self, number: int) -> float:
        """Seconds, into a slot that another adapter has."""
        start = stopwatch_s()
        self.adapters.execute([ActivateAdapter(number, SLOT)])
        seconds = stopwatch_s() - start
        (ack,) = self.adapters.poll_acks()
        assert isinstance(ack, Activated)
        assert ack.from_device == self._is_paged
        return seconds

    def _acks_of(self, kind: type[Any]) -> list[Any]:
        """One for each adapter."""
        found: list[Any] = []
        while len(found) < len(self._stock):
            found += [ack for ack in self.adapters.poll_acks() if isinstance(ack, kind)]
        return found


def measure(stage: Stage, activations: int, is_adjacent: bool) -> dict[str, list[float]]:
    """Seconds of each activation, by the place that it came from."""
    ways: dict[str, tuple[Callable[[], None], Callable[[int], float]]] = {
        "vLLM, host cache": (stage.begin_stock, stage.activate_stock),
        "Chameleon, host": (stage.begin_host, stage.activate_ours),
        "Chameleon, KV blocks": (lambda: stage.begin_pages(is_adjacent), stage.activate_ours),
    }
    found: dict[str, list[float]] = {name: [] for name in ways}
    each = -(-activations // TURNS)
    for _ in range(TURNS):
        for name, (begin, activate) in ways.items():
            begin()
            for number in range(1, ADAPTERS + 1):
                activate(number)  # the slot's first tenant costs more; caches are then alike
            found[name] += [activate(n % ADAPTERS + 1) for n in range(each)]
    return found


def main() -> None:
    """Start, measure, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--rank", type=int, default=64)
    parser.add_argument("--activations", type=int, default=40)
    parser.add_argument("--block-size", type=int, default=128)
    parser.add_argument("--adjacent", action="store_true", help="blocks side by side")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        root = Path(name)
        model = ensure_model(root, SHAPE, has_weights=False)
        dims = ModelDims.from_model(model)
        folders = {
            n: make_adapter(root / f"adapter-{n}", dims, options.rank, seed=n)
            for n in range(1, ADAPTERS + 1)
        }
        stage = Stage(start_engine(model, options.rank, options.block_size), folders)
        found = measure(stage, options.activations, options.adjacent)
    stage.adapters.close()
    stock_s, megabytes = statistics.median(found["vLLM, host cache"]), stage.nbytes / 1e6
    print(f"rank {options.rank}, blocks of {options.block_size} tokens")
    print(f"{'from':<22}{'ms':>8}{'MB':>8}{'ratio':>8}")
    for name, seconds in found.items():
        median_s = statistics.median(seconds)
        print(f"{name:<22}{median_s * 1e3:8.2f}{megabytes:8.1f}{median_s / stock_s:8.2f}")


if __name__ == "__main__":
    main()
