"""Every way an adapter folder can be broken, on real files."""

import json
import os
import tracemalloc
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.inspect import AdapterLimits, inspect_adapter, require_servable
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.errors import (
    AdapterInvalidError,
    AdapterNotFoundError,
    AdapterTooLargeError,
    ConfigError,
)

DIMS = ModelDims(32, 48, 2, 4, 2, 8, "tiny-llama")
Q0 = "base_model.model.model.layers.0.self_attn.q_proj"
Q1 = "base_model.model.model.layers.1.self_attn.q_proj"


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A sound adapter of rank 4 on q_proj and v_proj, named 'good'."""
    return make_adapter(
        tmp_path / "good", DIMS, 4, seed=1, target_modules=("q_proj", "v_proj"), dtype="float32"
    )


def set_config(adapter: Path, **fields: object) -> None:
    """Overwrite fields of the configuration."""
    path = adapter / CONFIG_NAME
    path.write_text(json.dumps({**json.loads(path.read_text()), **fields}))


def set_tensors(adapter: Path, change: Callable[[dict[str, np.ndarray]], object]) -> None:
    """Rewrite the weights with `change` applied."""
    tensors = load_file(adapter / WEIGHTS_NAME)
    change(tensors)
    save_file(tensors, adapter / WEIGHTS_NAME)


def only_problem(adapter: Path) -> str:
    """The one problem inspection lists; require_servable must give it with the adapter's name."""
    problems = inspect_adapter(adapter).problems
    assert len(problems) == 1, problems
    assert "way out: " in problems[0]
    with pytest.raises(AdapterInvalidError) as raised:
        require_servable(adapter)
    assert f"adapter {adapter.name!r}: {problems[0]}" == str(raised.value)
    return problems[0]


def test_a_sound_adapter_is_described_in_full(adapter: Path) -> None:
    """Each field of the answer is what was written to disk."""
    info = require_servable(adapter, AdapterLimits(max_rank=4))
    weights = 2 * ((32 * 4 + 4 * 32) + (32 * 4 + 4 * 16))
    assert ("good", adapter, 4, 8.0) == (info.name, info.path, info.rank, info.alpha)
    assert ("tiny-llama", ("q_proj", "v_proj")) == (info.base_model, info.target_modules)
    assert (8, 4 * weights, "float32") == (info.num_tensors, info.nbytes, info.dtype)
    assert () == info.problems


def test_a_missing_folder_is_not_found(tmp_path: Path) -> None:
    """A path without a folder is a listed problem, and AdapterNotFoundError when required."""
    missing = tmp_path / "gone"
    assert "there is no folder" in inspect_adapter(missing).problems[0]
    with pytest.raises(AdapterNotFoundError, match="'gone': there is no folder"):
        require_servable(missing)


def test_a_file_is_not_an_adapter(tmp_path: Path) -> None:
    """A file where the folder should be is not found either."""
    (tmp_path / "file").write_text("x")
    with pytest.raises(AdapterNotFoundError):
        require_servable(tmp_path / "file")


@pytest.mark.parametrize("name", ["a\0b", "x" * 300])
def test_impossible_paths_are_not_found(tmp_path: Path, name: str) -> None:
    """A path no file system can hold is answered like one that is not there."""
    assert "there is no folder" in inspect_adapter(tmp_path / name).problems[0]


def test_a_rank_above_the_limit_is_too_large(adapter: Path) -> None:
    """The message names adapter, rank and limit, and the flag that lifts it."""
    limits = AdapterLimits(max_rank=2)
    with pytest.raises(AdapterTooLargeError) as raised:
        require_servable(adapter, limits)
    for part in ("'good'", "rank is 4", "limit is 2", "--max-lora-rank 16"):
        assert part in str(raised.value)
    assert 1 == len(inspect_adapter(adapter, limits).problems)


def test_a_broken_adapter_is_invalid_before_it_is_too_large(adapter: Path) -> None:
    """With both faults the kind of error is the one a larger limit would not cure."""
    set_config(adapter, use_dora=True)
    with pytest.raises(AdapterInvalidError, match="DoRA"):
        require_servable(adapter, AdapterLimits(max_rank=2))


def test_more_bytes_than_the_limit_are_too_large(adapter: Path) -> None:
    """All bytes of the file count, for all of them are read; the message gives both numbers."""
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    set_tensors(adapter, lambda tensors: tensors.update({name: np.ones((9, 32), np.float32)}))
    file_bytes = inspect_adapter(adapter).nbytes + 4 * 9 * 32
    assert () == require_servable(adapter, AdapterLimits(max_bytes=file_bytes)).problems
    with pytest.raises(AdapterTooLargeError, match=f"{file_bytes} bytes, the limit is"):
        require_servable(adapter, AdapterLimits(max_bytes=file_bytes - 1))


def test_a_limit_below_one_is_refused() -> None:
    """AdapterLimits checks itself where it is made."""
    with pytest.raises(ConfigError, match="max_bytes is 0, the least is 1"):
        AdapterLimits(max_bytes=0)
    with pytest.raises(ConfigError, match="max_rank is 0, the least is 1"):
        AdapterLimits(max_rank=0)


def test_a_missing_configuration_is_a_problem(adapter: Path) -> None:
    """A folder with weights alone says which file is missing."""
    (adapter / CONFIG_NAME).unlink()
    assert "adapter_config.json is missing" in only_problem(adapter)


def test_missing_weights_are_a_problem(adapter: Path) -> None:
    """A folder with a configuration alone says which file is missing."""
    (adapter / WEIGHTS_NAME).unlink()
    assert "adapter_model.safetensors is missing" in only_problem(adapter)


@pytest.mark.parametrize("name", ["adapter_model.bin", "adapter_model.pt"])
def test_pickled_weights_are_refused(adapter: Path, name: str) -> None:
    """A pickle is never opened; the way out says how to convert it."""
    (adapter / WEIGHTS_NAME).rename(adapter / name)
    problem = only_problem(adapter)
    assert f"{name} is pickled" in problem
    assert "`chameleon adapters convert`" in problem


@pytest.mark.parametrize("kept", [0, 7, 8, 100, -1])
def test_truncated_weights_are_found(adapter: Path, kept: int) -> None:
    """A file cut anywhere, from its first byte to its last, is broken."""
    path = adapter / WEIGHTS_NAME
    os.truncate(path, kept if kept >= 0 else path.stat().st_size + kept)
    assert "adapter_model.safetensors is broken" in only_problem(adapter)


def test_bytes_after_the_last_tensor_are_found(adapter: Path) -> None:
    """A file longer than its header says is broken."""
    with (adapter / WEIGHTS_NAME).open("ab") as file:
        file.write(b"\0" * 5)
    assert "5 bytes follow the last tensor" in only_problem(adapter)


def test_lora_a_without_lora_b_is_a_problem(adapter: Path) -> None:
    """The module is named."""
    set_tensors(adapter, lambda tensors: tensors.pop(f"{Q0}.lora_B.weight"))
    assert "'model.layers.0.self_attn.q_proj' has lora_A but no lora_B" in only_problem(adapter)


def test_lora_b_without_lora_a_is_a_problem(adapter: Path) -> None:
    """The first module is named and the others are counted."""

    def drop(tensors: dict[str, np.ndarray]) -> None:
        del tensors[f"{Q0}.lora_A.weight"], tensors[f"{Q1}.lora_A.weight"]

    set_tensors(adapter, drop)
    assert "q_proj' (and 1 more) has lora_B but no lora_A" in only_problem(adapter)


def test_a_rank_other_than_promised_is_a_problem(adapter: Path) -> None:
    """Both sides of each pair are compared with r."""
    set_config(adapter, r=8)
    info = inspect_adapter(adapter)
    assert 2 == len(info.problems)
    assert "has shape [4, 32], the configuration promises rank 8" in info.problems[0]
    assert "has shape [32, 4], the configuration promises rank 8" in info.problems[1]


def test_a_tensor_of_three_dimensions_is_a_problem(adapter: Path) -> None:
    """A LoRA weight is a matrix."""
    name = f"{Q0}.lora_A.weight"
    set_tensors(adapter, lambda t: t.update({name: t[name].reshape(4, 32, 1)}))
    assert "has shape [4, 32, 1]" in only_problem(adapter)


def widen(tensors: dict[str, np.ndarray]) -> None:
    """Give q_proj of layer 0 rank 6."""
    tensors[f"{Q0}.lora_A.weight"] = np.ones((6, 32), np.float32)
    tensors[f"{Q0}.lora_B.weight"] = np.ones((32, 6), np.float32)


@pytest.mark.parametrize(
    "pattern",
    [
        {"layers.0.self_attn.q_proj": 6},
        {"model.layers.0.self_attn.q_proj": 6},
        {"layers.0.self_attn.q_proj": 6, "q_proj": 4},
        {r".*layers\.0\..*q_proj": 6},
        {r".*\.layers\.(0|7)\..*(q_proj|k_proj)$": 6},
        {r"((\w|\.)+)+!": 9, "layers.0.self_attn.q_proj": 6},
    ],
)
def test_rank_pattern_gives_a_module_its_own_rank(adapter: Path, pattern: dict[str, int]) -> None:
    """The rank reported is the largest: what a slot must hold."""
    set_tensors(adapter, widen)
    set_config(adapter, rank_pattern=pattern)
    assert max(pattern.values()) == require_servable(adapter).rank


@pytest.mark.parametrize(
    "pattern", [{"layers.1.self_attn.q_proj": 6}, {"q_proj": 4, "layers.0.self_attn.q_proj": 6}]
)
def test_a_rank_pattern_for_another_module_does_not_help(
    adapter: Path, pattern: dict[str, int]
) -> None:
    """The first name that ends the module's name decides, as in PEFT."""
    set_tensors(adapter, widen)
    set_config(adapter, rank_pattern=pattern)
    assert any("layers.0.self_attn.q_proj'" in text for text in inspect_adapter(adapter).problems)


def test_a_rank_pattern_above_the_limit_is_too_large(adapter: Path) -> None:
    """The limit is compared with the largest rank, not with r."""
    set_tensors(adapter, widen)
    set_config(adapter, rank_pattern={"layers.0.self_attn.q_proj": 6})
    with pytest.raises(AdapterTooLargeError, match="rank is 6, the limit is 4"):
        require_servable(adapter, AdapterLimits(max_rank=4))


@pytest.mark.parametrize("field", ["rank_pattern", "alpha_pattern"])
def test_an_expression_without_a_known_bound_is_refused(adapter: Path, field: str) -> None:
    """What looks back could take for ever, so nobody tries it."""
    set_config(adapter, **{field: {r"(a*)\1b": 4}})
    assert f"{field} has the key '(a*)\\\\1b'" in only_problem(adapter)


def test_fused_experts_may_stack_the_rank(adapter: Path) -> None:
    """PEFT saves the experts of one layer as one pair whose rank is a multiple of r."""
    stem = "base_model.model.model.layers.0.mlp.experts"
    save_file(
        {
            f"{stem}.lora_A.weight": np.ones((12, 32), np.float32),
            f"{stem}.lora_B.weight": np.ones((32, 12), np.float32),
        },
        adapter / WEIGHTS_NAME,
    )
    assert () == require_servable(adapter).problems


@pytest.mark.parametrize(
    "name",
    [
        f"{Q0}.lora_magnitude_vector",
        f"{Q0}.lora_B.bias",
        "base_model.model.lm_head.weight",
    ],
)
def test_a_tensor_vllm_cannot_place_is_a_problem(adapter: Path, name: str) -> None:
    """A name vLLM's loader would stumble over is told before it does."""
    set_tensors(adapter, lambda tensors: tensors.update({name: np.ones(3, np.float32)}))
    assert f"tensor {name!r} is no LoRA weight" in only_problem(adapter)


@pytest.mark.parametrize(
    ("wrong", "right"),
    [
        (f"{Q0}.lora_B.default.weight", f"{Q0}.lora_B.weight"),
        ("model.embed_tokens.lora_embedding_A.default", "model.embed_tokens.lora_embedding_A"),
    ],
)
def test_weights_with_an_adapters_name_in_theirs_are_told_so(
    adapter: Path, wrong: str, right: str
) -> None:
    """Saved from memory, not by save_pretrained; the problem gives the right name of one."""
    save_file({wrong: np.ones((4, 4), np.float32)}, adapter / WEIGHTS_NAME)
    problem = only_problem(adapter)
    assert f"tensor {wrong!r} has an adapter's name" in problem
    assert f"such names as {right!r}" in problem


@pytest.mark.parametrize("kind", ["weight", "bias"])
def test_a_classifiers_head_is_taken_where_the_model_classifies(adapter: Path, kind: str) -> None:
    """PEFT names both kinds of head in every classifier's configuration, and saves one."""
    name = f"base_model.model.score.{kind}"
    set_config(adapter, modules_to_save=["classifier", "score"])
    generating = AdapterLimits(has_head=False)
    assert () == require_servable(adapter, generating).problems  # it is named only, not there
    set_tensors(adapter, lambda tensors: tensors.update({name: np.ones((3, 32), np.float32)}))
    assert () == require_servable(adapter, AdapterLimits(max_rank=4)).problems
    with pytest.raises(AdapterInvalidError, match="is the head of a classifier, and this engine"):
        require_servable(adapter, generating)
    set_config(adapter, modules_to_save=["classifier"])
    assert f"tensor {name!r} is no LoRA weight" in only_problem(adapter)


def test_saved_base_embeddings_are_skipped(adapter: Path) -> None:
    """vLLM leaves them aside, so they neither count nor disturb."""
    before = inspect_adapter(adapter)
    name = "base_model.model.model.embed_tokens.base_layer.weight"
    set_tensors(adapter, lambda tensors: tensors.update({name: np.ones((9, 32), np.float32)}))
    after = require_servable(adapter)
    assert (before.num_tensors, before.nbytes) == (after.num_tensors, after.nbytes)


@pytest.mark.parametrize("tensors", [{}, {"model.norm.weight": np.ones(4, np.float32)}])
def test_weights_without_lora_tensors_are_a_problem(
    adapter: Path, tensors: dict[str, np.ndarray]
) -> None:
    """A base model's file is no adapter, nor is an empty one."""
    save_file(tensors, adapter / WEIGHTS_NAME)
    assert "the weights hold no LoRA tensors" in only_problem(adapter)


def test_whole_numbers_are_no_lora_weights(adapter: Path) -> None:
    """A dtype that is known but not floating point is a problem."""
    set_tensors(adapter, lambda t: t.update({name: t[name].astype(np.int8) for name in t}))
    assert "(and 7 more) is not floating point" in only_problem(adapter)


def test_mixed_dtypes_are_told(adapter: Path) -> None:
    """dtype joins what the file mixes."""
    name = f"{Q0}.lora_A.weight"
    set_tensors(adapter, lambda t: t.update({name: t[name].astype(np.float16)}))
    assert "float16+float32" == require_servable(adapter).dtype


def test_all_problems_are_listed_at_once(adapter: Path) -> None:
    """A user mends an adapter in one round."""
    set_config(adapter, use_dora=True, bias="some", r=0)
    (adapter / WEIGHTS_NAME).unlink()
    assert 4 == len(inspect_adapter(adapter, AdapterLimits(max_rank=2)).problems)


def test_the_weights_are_never_read(adapter: Path) -> None:
    """Four GiB of weights on disk cost less than 256 KiB of memory to inspect."""
    rows = 1 << 29
    entries = {
        f"{Q0}.lora_A.weight": ([4, rows], 0, 8 * rows),
        f"{Q0}.lora_B.weight": ([32, 4], 8 * rows, 8 * rows + 256),
    }
    header = json.dumps(
        {
            name: {"dtype": "F16", "shape": shape, "data_offsets": [begin, end]}
            for name, (shape, begin, end) in entries.items()
        }
    ).encode()
    path = adapter / WEIGHTS_NAME
    path.write_bytes(len(header).to_bytes(8, "little") + header)
    os.truncate(path, 8 + len(header) + 8 * rows + 256)
    tracemalloc.start()
    info = require_servable(adapter)
    peak_bytes = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert 8 * rows + 256 == info.nbytes
    assert peak_bytes < 1 << 18
