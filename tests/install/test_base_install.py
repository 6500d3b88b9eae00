"""A fresh environment with `pip install .` alone: what works without torch, vLLM and extras."""

import json
import os
import subprocess
import sys
import venv
from collections.abc import Callable
from pathlib import Path

import pytest

from chameleon_lora.cli.main import COMMANDS, ON_VLLM
from chameleon_lora.sim.profile import profile_text
from tests.bench.fake_process import fake_process
from tests.sim.plan_questions import SMALL

pytestmark = pytest.mark.slow  # pip builds the wheel and installs it

ROOT = Path(__file__).resolve().parents[2]
NO_NETWORK = ("Could not find a version", "NewConnectionError", "NameResolutionError")
LACKING = ("torch", "vllm", "matplotlib")
MODEL = {
    "hidden_size": 64,
    "intermediate_size": 96,
    "num_hidden_layers": 2,
    "num_attention_heads": 4,
}

Chameleon = Callable[..., subprocess.CompletedProcess[str]]


def pip(*words: str) -> None:
    """Runs pip; skips where it reaches no index."""
    done = subprocess.run(
        [sys.executable, "-m", "pip", *words], capture_output=True, text=True, check=False
    )
    if done.returncode and any(words in done.stderr for words in NO_NETWORK):
        pytest.skip(f"pip reaches no package index: {done.stderr.splitlines()[-1]}")
    assert 0 == done.returncode, done.stderr


@pytest.fixture(scope="module")
def fresh_python(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The interpreter of an environment with the wheel and what it declares, and nothing else."""
    place = tmp_path_factory.mktemp("base")
    venv.create(place / "venv", with_pip=False)
    python = place / "venv" / "bin" / "python"
    pip("wheel", "--no-deps", "--wheel-dir", str(place), str(ROOT))
    (wheel,) = place.glob("chameleon_lora-*.whl")
    pip("--python", str(python), "install", str(wheel))
    return python


@pytest.fixture
def chameleon(fresh_python: Path, tmp_path: Path) -> Chameleon:
    """Runs `chameleon WORD...` of that environment in an empty folder."""
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    program = fresh_python.with_name("chameleon")

    def run(*words: str | Path) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [program, *words],
            capture_output=True,
            text=True,
            check=False,
            cwd=tmp_path,
            env=environment,
        )

    return run


def test_the_environment_is_bare(fresh_python: Path) -> None:
    """The tests below mean something: neither torch nor vLLM nor matplotlib came along."""
    script = f"import importlib.util as u; print([m for m in {LACKING} if u.find_spec(m)])"
    found = subprocess.run(
        [fresh_python, "-Ic", script], capture_output=True, text=True, check=True
    )
    assert "[]" == found.stdout.strip()


def test_version_and_help(chameleon: Chameleon) -> None:
    """They are told, of the whole and of each command."""
    for words in (["--version"], ["--help"], *([name, "--help"] for name in COMMANDS)):
        done = chameleon(*words)
        assert (0, "") == (done.returncode, done.stderr)
        assert done.stdout


def test_plan(chameleon: Chameleon, tmp_path: Path) -> None:
    """Profiles are listed, and a plan is made from one."""
    assert "llama-7b-a40-48g" in chameleon("plan", "--list").stdout
    (tmp_path / "small.toml").write_text(profile_text(SMALL), "utf8")
    words = (
        "--adapters 4 --ranks 8 --input-tokens 200 --output-tokens 10 --slo-ttft 20 --seconds 60"
    )
    done = chameleon("plan", "--profile", "small.toml", *words.split())
    assert 0 == done.returncode, done.stderr
    assert "sustainable load" in done.stdout


def test_reproduce(chameleon: Chameleon, tmp_path: Path) -> None:
    """A row runs and gets its page; how to have plots is told."""
    done = chameleon("reproduce", "lanes", "--quick", "--out", "out")
    assert 0 == done.returncode, done.stderr
    assert "matplotlib is not installed: pip install 'chameleon-lora[report]'" in done.stdout
    assert (tmp_path / "out" / "index.html").is_file()


def test_adapters(chameleon: Chameleon, tmp_path: Path) -> None:
    """Random ones are made from a model's sizes, and looked at."""
    (tmp_path / "config.json").write_text(json.dumps(MODEL))
    made = chameleon("adapters", "make", "made", "--model", ".", "--count", "2", "--ranks", "4,8")
    assert (0, "") == (made.returncode, made.stderr)
    seen = chameleon("adapters", "inspect", "made")
    assert (0, 3) == (seen.returncode, len(seen.stdout.splitlines()))


def test_tenants(chameleon: Chameleon, tmp_path: Path) -> None:
    """A file is checked without a server."""
    (tmp_path / "t.toml").write_text(f'[tenants.a]\nkeys = ["sha256:{"0" * 64}"]\n')
    assert "a: keys 1, adapters none, weight 1\n" == chameleon("tenants", "check", "t.toml").stdout


def test_workload_bench_and_report(chameleon: Chameleon, tmp_path: Path) -> None:
    """A trace is described and replayed on a server elsewhere; the run becomes a page."""
    rows = [{"timestamp": ms, "input_length": 9, "output_length": 3} for ms in (0, 100, 400)]
    (tmp_path / "t.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    described = chameleon("workload", "describe", "t.jsonl")
    assert (0, "") == (described.returncode, described.stderr)
    with fake_process(tmp_path) as url:
        words = "--dataset-path t.jsonl --warmup 0 --duration 1 --request-rate 20 --base-share 1"
        done = chameleon("bench", "--base-url", url, *words.split(), "--out", "run")
    assert "Serving Benchmark Result" in done.stdout, done.stderr
    report = chameleon("report", "run", "--out", "page.html")
    assert 0 == report.returncode, report.stderr
    assert "matplotlib is not installed: pip install 'chameleon-lora[report]'" in report.stdout
    assert (tmp_path / "page.html").is_file()


@pytest.mark.parametrize(
    "words",
    [
        "serve model",
        "demo",
        "compare model --adapters folder",
        "calibrate --model tiny --out x.toml",
    ],
)
def test_what_runs_an_engine_says_what_it_needs(chameleon: Chameleon, words: str) -> None:
    """One line with the way out, exit code 1, and nothing begun."""
    name = words.split()[0]
    done = chameleon(*words.split())
    assert name in ON_VLLM
    assert (1, "", 1) == (done.returncode, done.stdout, len(done.stderr.splitlines()))
    assert done.stderr.startswith(f"chameleon {name}: it needs vLLM, which is not installed here")
    assert "pip install vllm" in done.stderr


def test_a_comparison_of_servers_elsewhere_needs_no_vllm(chameleon: Chameleon) -> None:
    """Arms that are commands of their own are begun: here the folder of adapters is what is missing."""
    words = ("--arm", "a=serve-a {port}", "--arm", "b=serve-b {port}")
    done = chameleon("compare", "model", "--adapters", "folder", *words)
    assert 2 == done.returncode
    assert "vLLM" not in done.stderr
