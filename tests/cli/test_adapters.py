"""`chameleon adapters`: tables, exit codes and messages."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load, load_file, save_file

from chameleon_lora.adapters.base_model import INDEX_NAME
from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.cli.main import main

MODEL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}


def run(*words: str | Path) -> int:
    """The exit code of `chameleon adapters ...`."""
    return main(["adapters", *map(str, words)])


@pytest.fixture
def model(tmp_path: Path) -> Path:
    """A model folder that holds sizes and nothing else."""
    (tmp_path / "model").mkdir()
    (tmp_path / "model" / "config.json").write_text(json.dumps(MODEL))
    return tmp_path / "model"


@pytest.fixture
def root(tmp_path: Path, model: Path) -> Path:
    """A folder of two made adapters, of ranks 2 and 4."""
    assert 0 == run("make", tmp_path / "root", "--model", model, "--count", "2", "--ranks", "2,4")
    return tmp_path / "root"


def test_sound_adapters_are_listed(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One line an adapter below the titles, and exit code 0."""
    capsys.readouterr()
    assert 0 == run("inspect", root)
    lines = capsys.readouterr().out.splitlines()
    assert ["name", "rank", "modules", "MiB", "dtype", "problems"] == lines[0].split()
    assert [["adapter-000-r2", "2"], ["adapter-001-r4", "4"]] == [
        line.split()[:2] for line in lines[1:]
    ]


def test_one_adapter_may_be_inspected(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """DIR may be the adapter itself."""
    capsys.readouterr()
    assert 0 == run("inspect", root / "adapter-001-r4")
    assert 2 == len(capsys.readouterr().out.splitlines())


def test_problems_are_told_and_give_exit_code_one(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The limit and a broken file stand in the table, a line each."""
    path = root / "adapter-000-r2" / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"use_dora": True}))
    path.with_name(WEIGHTS_NAME).unlink()
    capsys.readouterr()
    assert 1 == run("inspect", root, "--max-lora-rank", "2")
    _, first, second, third = capsys.readouterr().out.splitlines()
    place = first.index("adapter_model.safetensors is missing")
    assert "adapter-000-r2" == first.split()[0]
    assert second[:place].isspace()
    assert second[place:].startswith("use_dora is True")
    assert third[place:].startswith("its rank is 4, the limit is 2; way out")


def test_modules_are_those_that_have_weights(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Configurations promise many, by expressions too."""
    path = root / "adapter-000-r2" / CONFIG_NAME
    path.write_text(json.dumps(json.loads(path.read_text()) | {"target_modules": "all-linear"}))
    (root / "adapter-001-r4").rename(root / ".hidden")
    capsys.readouterr()
    assert 0 == run("inspect", root)
    _, line = capsys.readouterr().out.splitlines()
    assert {"q_proj", "down_proj"} <= set(line.split()[2].split(","))


def test_what_the_server_leaves_out_is_listed_with_its_reason(
    root: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Links to elsewhere, which trusted roots mend; checkpoints one level down; files that are links."""
    runs = tmp_path / "runs"
    runs.mkdir()
    (root / "adapter-000-r2").rename(runs / "a")
    (root / "linked").symlink_to(runs / "a")
    (root / "files").mkdir()
    for name in (CONFIG_NAME, WEIGHTS_NAME):
        (root / "files" / name).symlink_to(runs / "a" / name)
    (root / "task").mkdir()
    (root / "adapter-001-r4").rename(root / "task" / "checkpoint-500")
    capsys.readouterr()
    assert 1 == run("inspect", root)
    lines = {line.split()[0]: line for line in capsys.readouterr().out.splitlines()}
    assert "adapter_config.json leads out of the folder of adapters" in lines["files"]
    assert "leads out of the folder of adapters; way out" in lines["linked"]
    assert "its sub-folder 'checkpoint-500' does; way out" in lines["task"]
    (root / "task" / "checkpoint-500").rename(root / "adapter")
    (root / "task").rmdir()
    assert 0 == run("inspect", root, "--trusted-root", runs)
    (root / "task").mkdir()
    (root / "adapter").rename(root / "task" / "checkpoint-500")
    capsys.readouterr()
    assert 0 == run("inspect", root / "task")
    assert "checkpoint-500" in capsys.readouterr().out


@pytest.mark.parametrize("is_split", [False, True])
def test_weights_that_find_no_layer_are_told(
    is_split: bool, root: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """By the names in the model's files: one, or several with an index; a tied head has none."""
    kinds = (
        "self_attn.q_proj",
        "self_attn.k_proj",
        "self_attn.v_proj",
        "self_attn.o_proj",
        "mlp.up_proj",
    )
    layers = [
        f"model.layers.{n}.{kind}.weight" for n in (0, 1) for kind in (*kinds, "mlp.gate_proj")
    ]
    layers += ["model.layers.0.mlp.down_proj.weight", "model.embed_tokens.weight"]
    if is_split:
        (model / INDEX_NAME).write_text(json.dumps({"weight_map": dict.fromkeys(layers, "x")}))
    else:
        save_file(dict.fromkeys(layers, np.zeros(1)), model / "model.safetensors")
    capsys.readouterr()
    assert 1 == run("inspect", root, "--model", model)
    _, first, second = capsys.readouterr().out.splitlines()
    for line in first, second:
        assert "its weights for 'model.layers.1.mlp.down_proj' find no layer among" in line
    assert 2 == run("inspect", root, "--model", root)
    assert "holds 0 safetensors files" in capsys.readouterr().err


def test_pickled_weights_are_converted(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Those that have no others; one that cannot be is told, and costs the others nothing."""
    torch: Any = pytest.importorskip("torch")
    weights = root / "adapter-000-r2" / WEIGHTS_NAME
    torch.save(
        {n: torch.from_numpy(v) for n, v in load_file(weights).items()}, weights.with_suffix(".bin")
    )
    before = weights.read_bytes()
    weights.unlink()
    broken = root / "broken"
    broken.mkdir()
    (broken / CONFIG_NAME).write_text("{}")
    (broken / "adapter_model.bin").mkdir()
    capsys.readouterr()
    assert 1 == run("convert", root)
    first, second = capsys.readouterr().out.splitlines()
    assert "adapter-000-r2: adapter_model.safetensors written" == first
    assert second.startswith("broken: adapter_model.bin is not a regular file")
    assert load_file(weights).keys() == load(before).keys()
    assert 0 == run("inspect", root / "adapter-000-r2")
    assert 2 == run("convert", root / "adapter-001-r4")
    assert "holds 0 adapters whose weights are pickled alone" in capsys.readouterr().err


def test_json_gives_every_field(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """One list of objects, sorted by name, with the path as text."""
    capsys.readouterr()
    assert 0 == run("inspect", root, "--json")
    first, second = json.loads(capsys.readouterr().out)
    assert ("adapter-000-r2", 2, []) == (first["name"], first["rank"], first["problems"])
    assert str(root / "adapter-001-r4") == second["path"]


def test_a_hostile_configuration_cannot_steer_the_terminal(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Control signs from a file are shown escaped."""
    path = root / "adapter-000-r2" / CONFIG_NAME
    evil = {"target_modules": ["\x1b[2J"], "bias": "\x1b[31m", "peft_type": "\ud800"}
    path.write_text(json.dumps({**json.loads(path.read_text()), **evil}))
    capsys.readouterr()
    assert 1 == run("inspect", root)
    out = capsys.readouterr().out
    assert "\\x1b[2J" in out
    assert out.replace("\n", "").isprintable()


def test_a_folder_without_adapters_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Nothing to look at, or no folder at all, is exit code 2 with a way out."""
    assert 2 == run("inspect", tmp_path)
    assert "holds 0 adapters, the least is 1; way out:" in capsys.readouterr().err
    assert 2 == run("inspect", tmp_path / "gone")
    assert "cannot be listed" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("option", "value", "expected"),
    [
        ("--ranks", "8,x", "is 'x'; give a whole number from 1 to 512"),
        ("--ranks", "0", "is '0'"),
        ("--ranks", "", "is ''"),
        ("--count", "0", "is '0'; give a whole number from 1 to 10000"),
        ("--seed", "-1", "0 or more"),
        ("--dtype", "int8", "invalid choice: 'int8'"),
    ],
)
def test_a_bad_option_is_exit_code_two(
    tmp_path: Path,
    model: Path,
    capsys: pytest.CaptureFixture[str],
    option: str,
    value: str,
    expected: str,
) -> None:
    """The message names the option, the value and what is allowed."""
    words = {"--model": str(model), "--count": "1", "--ranks": "8", option: value}
    with pytest.raises(SystemExit) as raised:
        run("make", tmp_path / "root", *[f"{name}={given}" for name, given in words.items()])
    assert 2 == raised.value.code
    err = capsys.readouterr().err
    assert option in err
    assert expected in err


def test_making_twice_is_refused(
    root: Path, model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Adapters that exist are not overwritten, and none is added beside them."""
    assert 2 == run("make", root, "--model", model, "--count", "3", "--ranks", "2,4")
    assert "exists already" in capsys.readouterr().err
    assert 2 == len(list(root.iterdir()))


def test_a_missing_model_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The message names the folder and the way out."""
    assert 2 == run("make", tmp_path, "--model", tmp_path, "--count", "1", "--ranks", "2")
    assert "way out: give a model folder" in capsys.readouterr().err


def test_a_place_that_cannot_be_written_is_refused(
    model: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """A file in the way is exit code 2, not a traceback."""
    blocked = model / "config.json" / "root"
    assert 2 == run("make", blocked, "--model", model, "--count", "1", "--ranks", "2")
    assert "cannot be written" in capsys.readouterr().err
