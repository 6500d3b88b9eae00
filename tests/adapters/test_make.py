"""Random adapters: what is written, how large the change is, and that vLLM loads it."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.numpy import load_file

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.inspect import require_servable
from chameleon_lora.adapters.make import (
    LINEAR_MODULES,
    MAX_COUNT,
    ModelDims,
    make_adapter,
    make_adapters,
)
from chameleon_lora.errors import ConfigError

DIMS = ModelDims(
    hidden_size=64,
    intermediate_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    num_key_value_heads=2,
    head_dim=8,
)
SIZES = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def write_model(folder: Path, **fields: object) -> Path:
    """A model folder with that config.json."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(fields))
    return folder


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_made_adapter_is_servable(tmp_path: Path, dtype: str) -> None:
    """Rank, dtype, modules and bytes are those asked for, in every layer."""
    info = require_servable(make_adapter(tmp_path / "a", DIMS, 8, seed=3, dtype=dtype))
    inputs_and_outputs = sum(sum(DIMS.module_dims(module)) for module in LINEAR_MODULES)
    item_bytes = 4 if dtype == "float32" else 2
    assert (8, dtype, LINEAR_MODULES) == (info.rank, info.dtype, info.target_modules)
    assert 2 * 2 * len(LINEAR_MODULES) == info.num_tensors
    assert 2 * 8 * inputs_and_outputs * item_bytes == info.nbytes


def test_tensors_have_the_names_and_shapes_of_peft(tmp_path: Path) -> None:
    """A is (rank, inputs) and B is (outputs, rank), under the names PEFT gives."""
    tensors = load_file(make_adapter(tmp_path / "a", DIMS, 8, seed=3) / WEIGHTS_NAME)
    layer = "base_model.model.model.layers.1"
    assert (8, 64) == tensors[f"{layer}.self_attn.k_proj.lora_A.weight"].shape
    assert (16, 8) == tensors[f"{layer}.self_attn.k_proj.lora_B.weight"].shape
    assert (8, 96) == tensors[f"{layer}.mlp.down_proj.lora_A.weight"].shape
    assert (64, 8) == tensors[f"{layer}.mlp.down_proj.lora_B.weight"].shape


def test_the_same_seed_gives_the_same_bytes(tmp_path: Path) -> None:
    """Two runs agree to the byte, two seeds do not."""
    files = [
        [(path / name).read_bytes() for name in (CONFIG_NAME, WEIGHTS_NAME)]
        for path in (
            make_adapter(tmp_path / "one" / "a", DIMS, 4, seed=3),
            make_adapter(tmp_path / "two" / "a", DIMS, 4, seed=3),
            make_adapter(tmp_path / "three" / "a", DIMS, 4, seed=4),
        )
    ]
    assert files[0] == files[1]
    assert files[0][0] == files[2][0]
    assert files[0][1] != files[2][1]


@pytest.mark.parametrize("rank", [4, 16, 64])
def test_the_change_has_the_asked_size_at_every_rank(tmp_path: Path, rank: int) -> None:
    """alpha/r * B A x is about `scale` times the size of x, whatever the rank."""
    dims = ModelDims(512, 512, 1, 8, 8, 64)
    path = make_adapter(tmp_path / "a", dims, rank, seed=5, scale=0.1, target_modules=["q_proj"])
    tensors = load_file(path / WEIGHTS_NAME)
    config = json.loads((path / CONFIG_NAME).read_text())
    stem = "base_model.model.model.layers.0.self_attn.q_proj"
    a, b = tensors[f"{stem}.lora_A.weight"], tensors[f"{stem}.lora_B.weight"]
    x = np.random.default_rng(0).standard_normal((512, 256))
    change = config["lora_alpha"] / config["r"] * (b @ (a @ x))
    assert pytest.approx(0.1, rel=0.2) == float(np.linalg.norm(change) / np.linalg.norm(x))


def test_lower_precision_holds_the_same_values(tmp_path: Path) -> None:
    """bfloat16 is the nearest to the float32 value, at most one part in 256 away."""
    exact = load_file(make_adapter(tmp_path / "exact", DIMS, 4, seed=3) / WEIGHTS_NAME)
    path = make_adapter(tmp_path / "short", DIMS, 4, seed=3, dtype="bfloat16")
    raw = (path / WEIGHTS_NAME).read_bytes()
    header_bytes = int.from_bytes(raw[:8], "little")
    header: dict[str, Any] = json.loads(raw[8 : 8 + header_bytes])
    name = "base_model.model.model.layers.1.mlp.up_proj.lora_B.weight"
    begin, end = header[name]["data_offsets"]
    upper = np.frombuffer(raw[8 + header_bytes :][begin:end], dtype="<u2").astype(np.uint32)
    values = (upper << 16).view(np.float32).reshape(header[name]["shape"])
    np.testing.assert_allclose(values, exact[name], rtol=1 / 256)
    with safe_open(path / WEIGHTS_NAME, framework="np") as file:
        assert name in file.keys()  # noqa: SIM118 - the handle is no mapping


def test_nothing_is_left_beside_a_made_adapter(tmp_path: Path) -> None:
    """The staging folder is gone, and others may read the adapter."""
    path = make_adapter(tmp_path / "a", DIMS, 4, seed=3)
    assert [path] == list(tmp_path.iterdir())
    (tmp_path / "b").mkdir()
    assert (tmp_path / "b").stat().st_mode == path.stat().st_mode


def test_an_existing_folder_is_not_overwritten(tmp_path: Path) -> None:
    """The second make refuses and the first one's bytes stay."""
    path = make_adapter(tmp_path / "a", DIMS, 4, seed=3)
    before = (path / WEIGHTS_NAME).read_bytes()
    with pytest.raises(ConfigError, match="exists already and is not overwritten; way out"):
        make_adapter(path, DIMS, 4, seed=4)
    assert before == (path / WEIGHTS_NAME).read_bytes()


@pytest.mark.parametrize(
    ("arguments", "expected"),
    [
        ({"rank": 0}, "rank is 0, allowed are 1 to 512"),
        ({"rank": 513}, "rank is 513"),
        ({"dtype": "int8"}, "dtype is 'int8', allowed are float32, float16, bfloat16"),
        ({"target_modules": ("lm_head",)}, "target_modules is ['lm_head']"),
        ({"target_modules": ()}, "target_modules is []"),
    ],
)
def test_arguments_out_of_range_are_refused(
    tmp_path: Path, arguments: dict[str, Any], expected: str
) -> None:
    """Nothing is written for an argument vLLM could not hold."""
    with pytest.raises(ConfigError) as raised:
        make_adapter(tmp_path / "a", DIMS, **{"rank": 4, "seed": 0, **arguments})
    assert expected in str(raised.value)
    assert [] == list(tmp_path.iterdir())


def test_many_adapters_take_the_ranks_in_rotation(tmp_path: Path) -> None:
    """Names count up and carry the rank; each has weights of its own."""
    paths = make_adapters(tmp_path, DIMS, (2, 4), 3, seed=0)
    assert ["adapter-000-r2", "adapter-001-r4", "adapter-002-r2"] == [path.name for path in paths]
    assert [2, 4, 2] == [require_servable(path).rank for path in paths]
    weights = {(path / WEIGHTS_NAME).read_bytes() for path in paths}
    assert 3 == len(weights)


@pytest.mark.parametrize(
    ("ranks", "count", "seed", "expected"),
    [
        ((), 1, 0, "ranks is empty"),
        ((4,), 0, 0, f"count is 0, allowed are 1 to {MAX_COUNT}"),
        ((4,), MAX_COUNT + 1, 0, "count is 10001"),
        ((4,), 1, -1, "seed is -1"),
        ((4, 600), 2, 0, "rank is 600"),
    ],
)
def test_a_bad_plan_writes_nothing(
    tmp_path: Path, ranks: tuple[int, ...], count: int, seed: int, expected: str
) -> None:
    """All arguments are checked before the first folder is made."""
    with pytest.raises(ConfigError) as raised:
        make_adapters(tmp_path, DIMS, ranks, count, seed)
    assert expected in str(raised.value)
    assert [] == list(tmp_path.iterdir())


def test_sizes_come_from_the_models_configuration(tmp_path: Path) -> None:
    """Given sizes are read; left out or null, heads share and divide the hidden size."""
    full = write_model(tmp_path / "full", **SIZES, num_key_value_heads=2, head_dim=32)
    bare = write_model(tmp_path / "bare", **SIZES, head_dim=None)
    assert ModelDims(64, 96, 2, 4, 2, 32, "full") == ModelDims.from_model(full)
    assert ModelDims(64, 96, 2, 4, 4, 16, "bare") == ModelDims.from_model(bare)


@pytest.mark.parametrize(
    ("key", "value"), [("hidden_size", None), ("hidden_size", "64"), ("num_hidden_layers", 0)]
)
def test_a_missing_or_impossible_size_is_refused(tmp_path: Path, key: str, value: object) -> None:
    """The message names the key, its value and the file."""
    model = write_model(tmp_path / "model", **{**SIZES, key: value})
    with pytest.raises(ConfigError, match=f"{key} is {value!r} in .*config.json"):
        ModelDims.from_model(model)


def test_a_folder_without_a_model_is_refused(tmp_path: Path) -> None:
    """The message says what kind of folder is wanted."""
    with pytest.raises(ConfigError, match="way out: give a model folder"):
        ModelDims.from_model(tmp_path)


@pytest.mark.vllm
@pytest.mark.slow
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_vllm_loads_a_made_adapter(tmp_path: Path, dtype: str) -> None:
    """vLLM's own loader takes the files and sees the same rank, scaling and shapes."""
    peft_helper = pytest.importorskip("vllm.lora.peft_helper")
    lora_model = pytest.importorskip("vllm.lora.lora_model")
    path = make_adapter(tmp_path / "a", DIMS, 8, seed=3, dtype=dtype)
    helper = peft_helper.PEFTHelper.from_local_dir(str(path), 1024)
    loaded = lora_model.LoRAModel.from_local_checkpoint(
        str(path), set(LINEAR_MODULES), helper, lora_model_id=1, device="cpu"
    )
    layer = loaded.loras["model.layers.1.self_attn.k_proj"]
    assert 2 * len(LINEAR_MODULES) == len(loaded.loras)
    assert (8, 2.0) == (loaded.rank, layer.scaling)
    assert ((8, 64), (16, 8)) == (tuple(layer.lora_a.shape), tuple(layer.lora_b.shape))
    assert f"torch.{dtype}" == str(layer.lora_a.dtype)
