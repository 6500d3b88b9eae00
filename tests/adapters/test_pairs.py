"""Which tensors make LoRA weights, and what is said of those that do not."""

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chameleon_lora.adapters.config import CONFIG_NAME, without_expressions
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.inspect import inspect_adapter, require_servable
from chameleon_lora.adapters.make import ModelDims, make_adapter

Q0 = "base_model.model.model.layers.0.self_attn.q_proj"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A sound adapter."""
    return make_adapter(tmp_path / "good", ModelDims(32, 48, 2, 4, 2, 8), 4, seed=1)


@pytest.mark.parametrize("bias", ["all", "lora_only"])
def test_trained_biases_are_a_problem_where_there_are_any(adapter: Path, bias: str) -> None:
    """A base model without any has none to train; vLLM is told so then."""
    raw = json.dumps({**json.loads((adapter / CONFIG_NAME).read_bytes()), "bias": bias}).encode()
    (adapter / CONFIG_NAME).write_bytes(raw)
    assert () == require_servable(adapter).problems
    assert "none" == json.loads(without_expressions(raw, []))["bias"]
    name = f"{Q0}.base_layer.bias"
    tensors = {**load_file(adapter / WEIGHTS_NAME), name: np.ones(3, np.float32)}
    save_file(tensors, adapter / WEIGHTS_NAME)
    assert f"tensor {name!r} is a bias of the base model" in inspect_adapter(adapter).problems[0]


def test_weights_in_another_trainers_names_are_told_with_pefts(adapter: Path) -> None:
    """The problem has a name found there, and one as it should be."""
    found = "layers.0.attn.q_proj.lora_a.weight"
    save_file({found: np.ones((4, 4), np.float32)}, adapter / WEIGHTS_NAME)
    (problem,) = inspect_adapter(adapter).problems
    assert f"but {found!r}; way out" in problem
    assert "'base_model.model.model.layers.0.self_attn.q_proj.lora_A.weight'" in problem
