"""The command `chameleon compare`."""

import sys
from pathlib import Path

import pytest

from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.cli.main import main
from tests.bench import fake_openai
from tests.servers.made_model import MODEL_CONFIG

FAKE = f"{sys.executable} {Path(fake_openai.__file__)} {{port}}"


@pytest.fixture
def adapters(tmp_path: Path) -> Path:
    """A folder with two adapters, for a model of which only the sizes exist."""
    model = tmp_path / "model"
    model.mkdir()
    (model / "config.json").write_text(MODEL_CONFIG, "utf8")
    for number, name in enumerate("ab"):
        make_adapter(tmp_path / "adapters" / name, ModelDims.from_model(model), 4, seed=number)
    return tmp_path / "adapters"


def compare(adapters: Path, *words: str) -> int:
    """The exit code, with the model beside the adapters."""
    return main(["compare", str(adapters.parent / "model"), "--adapters", str(adapters), *words])


def test_two_servers_are_compared_and_the_table_printed(
    adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Any command line is an arm; the difference is told before, the ratios after."""
    out = tmp_path / "out"
    code = compare(
        adapters, "--arm", f"one={FAKE} --tokens-per-s 500", "--arm", f"two={FAKE}",
        "--load", "1", "--capacity", "40", "--slo-ttft", "1", "--repeats", "1", "--duration", "0.5",
        "--warmup", "0.1", "--max-input-tokens", "9", "--max-output-tokens", "9", "--out", str(out),
    )  # fmt: skip
    printed, said = capsys.readouterr()
    assert 0 == code
    assert "two differs from one: command: " in said
    assert "| figure | one | two |" in printed
    assert "P99 time to first token" in printed
    assert f"chameleon report {out}" in printed


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--arms", "stock"], "the arms stock are no comparison"),
        (["--arms", "stock", "nobody"], "no built-in arm 'nobody'"),
        (["--arms", "stock,stock"], "each with a label of its own"),
        (["--arms", "stock", "--arm", "x=sjf --seed 4"], "differs from 'stock' in 2 settings"),
        (["--warmup", "30"], "--warmup 30 leaves nothing of --duration 30"),
        (["--max-loras", "none"], "--max-loras is 'none'"),
    ],
)
def test_what_cannot_be_compared_is_refused(
    adapters: Path, words: list[str], says: str, capsys: pytest.CaptureFixture[str]
) -> None:
    """Before any server is started: exit code 2 and what is wrong."""
    assert 2 == compare(adapters, *words)
    assert says in capsys.readouterr().err


def test_a_folder_that_holds_something_is_not_overwritten(
    adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 2; it holds the model and the adapters."""
    assert 2 == compare(adapters, "--out", str(tmp_path))
    assert "exists already" in capsys.readouterr().err


def test_a_server_that_does_not_start_is_a_failure(
    adapters: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, and the end of its log."""
    arms = ["--arm", f"one={sys.executable} -c exit(7) {{port}}", "--arm", f"two={FAKE}"]
    assert 1 == compare(adapters, *arms, "--out", str(tmp_path / "out"))
    assert "ended with status 7" in capsys.readouterr().err
