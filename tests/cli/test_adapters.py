"""`chameleon adapters`: tables, exit codes and messages."""

import json
from pathlib import Path

import pytest

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
    """The limit and a broken file show below the table, one line each."""
    (root / "adapter-000-r2" / WEIGHTS_NAME).unlink()
    capsys.readouterr()
    assert 1 == run("inspect", root, "--max-lora-rank", "2")
    lines = capsys.readouterr().out.splitlines()
    assert lines[3].startswith("adapter-000-r2: adapter_model.safetensors is missing")
    assert lines[4].startswith("adapter-001-r4: its rank is 4, the limit is 2")


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
