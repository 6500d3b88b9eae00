"""One small vLLM engine in this process for all tests that need real LoRA layers."""

import gc
import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.engine_vllm.hooks import install
from tests.engine_vllm.hooked import vllm_restored

HIDDEN, INTERMEDIATE, HEADS, KV_HEADS, LAYERS, VOCABULARY = 64, 96, 2, 1, 2, 256
SLOTS = 3
MAX_RANK = 16
SHAPES = {
    "self_attn.q_proj": (HIDDEN, HIDDEN),
    "self_attn.k_proj": (HIDDEN, HIDDEN * KV_HEADS // HEADS),
    "self_attn.v_proj": (HIDDEN, HIDDEN * KV_HEADS // HEADS),
    "self_attn.o_proj": (HIDDEN, HIDDEN),
    "mlp.gate_proj": (HIDDEN, INTERMEDIATE),
    "mlp.up_proj": (HIDDEN, INTERMEDIATE),
    "mlp.down_proj": (INTERMEDIATE, HIDDEN),
}
"""(inputs, outputs) of each projection of the test model."""
ALL_TARGETS = tuple(name.partition(".")[2] for name in SHAPES)
ENGINE_ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}
"""While the engine starts; other tests do not meet it."""

MakeAdapter = Callable[..., Path]


@pytest.fixture(autouse=True)
def _environment_is_read_anew() -> None:
    """Undoes what each engine does to its process at its start: vLLM keeps what it read once."""
    if "vllm.envs" in sys.modules:
        sys.modules["vllm.envs"].disable_envs_cache()


@pytest.fixture
def hooked() -> Iterator[None]:
    """vLLM with Chameleon's hooks in this process, for the time of one test."""
    pytest.importorskip("vllm")
    with vllm_restored():
        install()
        yield


@dataclass(frozen=True, slots=True)
class LoraEngine:
    """An LLM whose worker has Chameleon's manager, but vLLM's own scheduler: no commands come."""

    llm: Any
    worker_manager: Any

    @property
    def slots(self) -> Any:
        """vLLM's LoRAModelManager, which owns the slots."""
        return self.worker_manager._adapter_manager


@pytest.fixture(scope="session")
def make_adapter(tmp_path_factory: pytest.TempPathFactory) -> MakeAdapter:
    """Writes a random PEFT folder; same seed and shape, same bytes."""
    torch = pytest.importorskip("torch")
    from safetensors.torch import save_file

    def make(
        seed: int,
        rank: int = 8,
        targets: tuple[str, ...] = ALL_TARGETS,
        hidden_error: int = 0,
        with_head: bool = False,
        with_embedding: bool = False,
    ) -> Path:
        folder = tmp_path_factory.mktemp(f"adapter-{seed}-r{rank}")
        generator = torch.Generator().manual_seed(seed)
        shapes = {
            f"model.layers.{layer}.{name}": shape
            for layer in range(LAYERS)
            for name, shape in SHAPES.items()
            if name.partition(".")[2] in targets
        }
        if with_head:
            shapes["lm_head"] = (HIDDEN, VOCABULARY)
        weights = {}
        for name, (inputs, outputs) in shapes.items():
            a = torch.randn(rank, inputs + hidden_error, generator=generator)
            b = torch.randn(outputs, rank, generator=generator)
            weights[f"base_model.model.{name}.lora_A.weight"] = a
            weights[f"base_model.model.{name}.lora_B.weight"] = b
        if with_embedding:
            name = "base_model.model.model.embed_tokens.lora_embedding"
            weights[f"{name}_A"] = torch.randn(rank, VOCABULARY, generator=generator)
            weights[f"{name}_B"] = torch.randn(HIDDEN, rank, generator=generator)
        ends = {"lm_head": with_head, "embed_tokens": with_embedding}
        modules = [*targets, *(name for name, is_wanted in ends.items() if is_wanted)]
        config = {
            "peft_type": "LORA",
            "r": rank,
            "lora_alpha": 2 * rank,
            "target_modules": modules,
            "bias": "none",
        }
        (folder / "adapter_config.json").write_text(json.dumps(config))
        save_file(weights, folder / "adapter_model.safetensors")
        return folder

    return make


@pytest.fixture(scope="session")
def lora_engine(tmp_path_factory: pytest.TempPathFactory) -> Iterator[LoraEngine]:
    """The engine, started at the first use (10 to 20 s)."""
    pytest.importorskip("vllm")
    with pytest.MonkeyPatch.context() as patch:  # servers of other tests inherit nothing of it
        for name, value in ENGINE_ENVIRONMENT.items():
            patch.setenv(name, value)
        from vllm import LLM
        from vllm.v1.worker import lora_model_runner_mixin as mixin

        from chameleon_lora.engine_vllm.config import CONFIG_KEY
        from chameleon_lora.engine_vllm.worker.lora_manager import manager_class

        patch.setattr(mixin, "LRUCacheWorkerLoRAManager", manager_class())
        llm = LLM(
            str(_tiny_llama(tmp_path_factory.mktemp("tiny-llama"))),
            skip_tokenizer_init=True,
            enable_lora=True,
            max_loras=SLOTS,
            max_lora_rank=MAX_RANK,
            max_model_len=64,
            max_num_seqs=16,
            max_num_batched_tokens=64,
            dtype="float32",
            enforce_eager=True,
            enable_prefix_caching=False,
            disable_log_stats=True,
            additional_config={CONFIG_KEY: {"serving": {"lora_backend": "slots"}}},
        )
    core = llm.llm_engine.engine_core.engine_core
    runner = core.model_executor.driver_worker.worker.model_runner
    yield LoraEngine(llm, runner.lora_manager)
    runner.lora_manager.adapters.close()
    del core, runner, llm
    gc.collect()


def _tiny_llama(folder: Path) -> Path:
    import torch
    import transformers

    torch.manual_seed(0)
    config = transformers.LlamaConfig(
        vocab_size=VOCABULARY,
        hidden_size=HIDDEN,
        intermediate_size=INTERMEDIATE,
        num_hidden_layers=LAYERS,
        num_attention_heads=HEADS,
        num_key_value_heads=KV_HEADS,
        max_position_embeddings=64,
        initializer_range=0.2,
        tie_word_embeddings=False,
    )
    transformers.LlamaForCausalLM(config).to(torch.float32).save_pretrained(folder)
    return folder
