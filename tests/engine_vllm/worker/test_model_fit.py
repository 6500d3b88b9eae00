"""Which modules of an adapter find no layer of the model."""

from types import SimpleNamespace
from typing import Any

import pytest

torch = pytest.importorskip("torch")

from chameleon_lora.engine_vllm.worker.model_fit import strangers  # noqa: E402

PACKS = {"qkv_proj": ["q_proj", "k_proj", "v_proj"], "gate_up_proj": ["gate_proj", "up_proj"]}
TAKEN = (
    "model.layers.0.self_attn.qkv_proj",
    "model.layers.0.self_attn.o_proj",
    "model.layers.0.mlp.experts",
    "model.embed_tokens",
    "lm_head",
)
EXPERTS = [f"experts.{n}.{part}" for n in range(2) for part in ("w1", "w2", "w3")]


PPMissingLayer = type("PPMissingLayer", (torch.nn.Identity,), {})
"""As vLLM calls a layer that another pipeline stage has."""


def manager(*, pooling: bool = False) -> Any:
    """What is asked of vLLM's LoRAModelManager, around a model of these layers."""
    model = torch.nn.Module()
    for name in (*TAKEN, "visual.blocks.0.attn.qkv_proj", "model.layers.0.mlp.gate"):
        place = model
        for part in name.split("."):
            if not hasattr(place, part):
                place.add_module(part, torch.nn.Module())
            place = getattr(place, part)
    model.model.layers.add_module("1", PPMissingLayer())
    return SimpleNamespace(
        model=model,
        modules=dict.fromkeys(TAKEN),
        packed_modules={
            TAKEN[0]: [f"model.layers.0.self_attn.{part}" for part in PACKS["qkv_proj"]],
            TAKEN[2]: [f"model.layers.0.mlp.{name}" for name in EXPERTS],
        },
        packed_modules_mapping={**PACKS, "experts": EXPERTS},
        is_pooling_model=pooling,
    )


def found(*names: str, pooling: bool = False) -> tuple[list[str], list[str]]:
    """Absent and idle ones among these modules of an adapter."""
    return strangers(manager(pooling=pooling), SimpleNamespace(loras=dict.fromkeys(names)))


def test_what_a_layer_takes_is_no_stranger() -> None:
    """Alone, packed, experts one by one and stacked, embeddings, and what another stage has."""
    layer = "model.layers.0"
    packed = [f"{layer}.self_attn.{name}" for name in ("q_proj", "v_proj", "qkv_proj", "o_proj")]
    experts = [f"{layer}.mlp.{name}" for name in (*EXPERTS, "experts", "experts.base_layer")]
    other_stage = "model.layers.1.self_attn.q_proj"
    assert ([], []) == found(*packed, *experts, "model.embed_tokens", "lm_head", other_stage)


def test_a_pooling_model_is_looked_in_without_its_prefix_too() -> None:
    """As vLLM does; a generating one is not."""
    name = "layers.0.self_attn.q_proj"
    assert ([], []) == found(name, pooling=True)
    assert ([name], []) == found(name)


@pytest.mark.parametrize(
    "name",
    [
        "model.language_model.layers.0.self_attn.q_proj",
        "model.layers.7.self_attn.q_proj",
        "model.layers.0.mlp.experts.2.w1",
        "model.layers.0.self_attn.qkv_proj.base_layer",
        "model.layers.10.self_attn.q_proj",
    ],
)
def test_what_the_model_has_not_is_absent(name: str) -> None:
    """Another wrapper's prefix, more layers or experts than the model has."""
    assert ([name], []) == found("lm_head", name)


@pytest.mark.parametrize(
    "name",
    ["visual.blocks.0.attn.q_proj", "visual.blocks.0.attn.qkv_proj", "model.layers.0.mlp.gate"],
)
def test_what_vllm_does_not_adapt_is_idle(name: str) -> None:
    """The layer is there, on its own or packed, so the adapter is no other model's."""
    assert ([], [name]) == found("lm_head", name)
