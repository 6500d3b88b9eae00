"""From where an engine's batches use adapters, by vLLM's own configuration of each kind of engine."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.lora_backend import backend_of
from chameleon_lora.errors import ConfigError
from chameleon_lora.settings import LoraBackend
from tests.engine_vllm.conftest import ENGINE_ENVIRONMENT

pytest.importorskip("vllm")
pytestmark = [pytest.mark.vllm, pytest.mark.slow]

MODEL = {
    "hidden_size": 64, "intermediate_size": 96, "num_hidden_layers": 2, "num_attention_heads": 2,
    "num_key_value_heads": 2, "vocab_size": 256, "max_position_embeddings": 64, "head_dim": 32,
}  # fmt: skip
LLAMA = {"architectures": ["LlamaForCausalLM"], "model_type": "llama", **MODEL}
CLASSIFIER = {**LLAMA, "architectures": ["LlamaForSequenceClassification"]}
MIXTRAL = {
    **LLAMA, "architectures": ["MixtralForCausalLM"], "model_type": "mixtral", "num_local_experts": 4,
    "num_experts_per_tok": 2,
}  # fmt: skip
POOLING = {"runner": "pooling"}
PAGED: dict[str, tuple[dict[str, Any], dict[str, Any]]] = {
    "writing": (LLAMA, {}),
    "float16": (LLAMA, {"dtype": "float16"}),
    "embedding": (LLAMA, {**POOLING, "convert": "embed"}),
    "late interaction": (LLAMA, {**POOLING, "convert": "embed", "pooler_config": {"task": "token_embed"}}),
    "two ranks": (LLAMA, {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}),
    "two stages": (LLAMA, {"pipeline_parallel_size": 2, "distributed_executor_backend": "mp"}),
    "two engines": (LLAMA, {"data_parallel_size": 2}),
    "some targets": (LLAMA, {"lora_target_modules": ["q_proj"]}),
}  # fmt: skip
SLOTS: dict[str, tuple[dict[str, Any], dict[str, Any], str]] = {
    "mixture": (MIXTRAL, {}, "mixture of experts"),
    "encoder": ({**LLAMA, "is_encoder_decoder": True}, {}, "encoder"),
    "classifier": (CLASSIFIER, POOLING, "classifier's head"),
    "made a classifier": (LLAMA, {**POOLING, "convert": "classify"}, "classifier's head"),
    "towers": (LLAMA, {"enable_tower_connector_lora": True}, "--enable-tower-connector-lora"),
    "cut by rank": (LLAMA, {"fully_sharded_loras": True}, "--fully-sharded-loras"),
}


@pytest.fixture
def config(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Of an engine for a model of this kind, with these arguments of vLLM's."""
    from vllm.engine.arg_utils import EngineArgs

    for name, value in ENGINE_ENVIRONMENT.items():
        monkeypatch.setenv(name, value)

    def make(model: dict[str, Any], arguments: dict[str, Any]) -> Any:
        (tmp_path / "config.json").write_text(json.dumps(model))
        given = {"dtype": "float32", "enable_lora": True, "skip_tokenizer_init": True, **arguments}
        return EngineArgs(model=str(tmp_path), **given).create_engine_config()

    return make


@pytest.mark.parametrize("kind", PAGED)
def test_an_engine_on_cpu_needs_no_slots(config: Any, kind: str) -> None:
    """It has them if it is told so, and each answer has a reason."""
    made = config(*PAGED[kind])
    chosen = {wanted: backend_of(made, wanted) for wanted in LoraBackend}
    assert chosen[LoraBackend.AUTO] == chosen[LoraBackend.PAGED]
    assert chosen[LoraBackend.AUTO].is_paged
    assert chosen[LoraBackend.AUTO].reason == "this engine can use adapters where they lie"
    assert not chosen[LoraBackend.SLOTS].is_paged
    assert chosen[LoraBackend.SLOTS].reason == "serving.lora_backend is slots"


@pytest.mark.parametrize("kind", SLOTS)
def test_what_has_no_other_way_has_slots_and_says_why(config: Any, kind: str) -> None:
    """Asked for the impossible, it does not start."""
    model, arguments, words = SLOTS[kind]
    made = config(model, arguments)
    chosen = backend_of(made, LoraBackend.AUTO)
    assert not chosen.is_paged
    assert words in chosen.reason
    with pytest.raises(ConfigError, match=f"lora_backend is paged, but .*{words}.*; use auto"):
        backend_of(made, LoraBackend.PAGED)


def test_other_devices_have_slots(config: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """Their kernels read no others."""
    from vllm.platforms import current_platform

    made = config(LLAMA, {})
    monkeypatch.setattr(type(current_platform), "is_cpu", lambda _: False)
    assert "slots only" in backend_of(made, LoraBackend.AUTO).reason


def test_an_engine_without_adapters_has_none_to_use() -> None:
    """Nothing changes for it."""
    without = SimpleNamespace(lora_config=None)
    assert not backend_of(without, LoraBackend.PAGED).is_paged
