"""Two ranks that each read their part of an adapter from their own disk: what if one cannot?"""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.engine_vllm.measure.offline import ENVIRONMENT
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[3]


@pytest.fixture(scope="module", params=["tensor", pytest.param("pipeline", marks=pytest.mark.long)])
def ends(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Any:
    """How the requests of `two_ranks.main` ended."""
    pytest.importorskip("vllm")
    model = ensure_tiny_model(default_cache_dir())
    dims = ModelDims.from_model(model)
    root = tmp_path_factory.mktemp("ranks")
    first, second = root / "first", root / "second"
    for seed, name in enumerate(("other", "broken", "good", "slow")):
        make_adapter(first / name, dims, 8, seed=seed, scale=1.0)
    shutil.copytree(first, second, copy_function=os.link)  # the very same files
    make_adapter(root / "new", dims, 8, seed=9, scale=1.0)
    (root / "new" / WEIGHTS_NAME).replace(second / "other" / WEIGHTS_NAME)
    (second / "broken" / WEIGHTS_NAME).unlink()
    pipe, told = root / "pipe", root / "told.json"
    os.mkfifo(pipe)
    command = [sys.executable, "-m", "tests.engine_vllm.worker.two_ranks", str(model)]
    subprocess.run(
        [*command, str(first), str(second), str(pipe), str(told), request.param],
        check=True,
        cwd=ROOT,
        stdout=sys.stderr,
        env={
            **os.environ,
            **ENVIRONMENT,
            "PYTHONPATH": os.pathsep.join([os.environ.get("PYTHONPATH", ""), str(ROOT)]),
            "VLLM_CPU_OMP_THREADS_BIND": "0|1" if (os.cpu_count() or 1) > 1 else "0|0",
        },
        timeout=500,
    )
    return json.loads(told.read_text())


def test_an_adapter_that_one_rank_cannot_read_ends_its_own_requests(ends: Any) -> None:
    """With that rank's reason; the engine goes on, and serves the others."""
    finish, tokens, reason = ends["first"]["broken"]
    assert ("error", []) == (finish, tokens)
    assert "Adapter 'broken' cannot be loaded" in reason
    assert WEIGHTS_NAME in reason
    assert ("length", 8) == (ends["first"]["good"][0], len(ends["first"]["good"][1]))


def test_halves_of_two_contents_are_never_one_adapter(ends: Any) -> None:
    """Files that were overwritten between the two ranks' reads are an error, not an answer."""
    finish, tokens, reason = ends["first"]["other"]
    assert ("error", []) == (finish, tokens)
    assert "Adapter 'other' cannot be loaded: its files changed" in reason


def test_no_step_waits_for_one_ranks_disk(ends: Any) -> None:
    """Others are answered while it reads; its own requests once it has."""
    assert {"good"} == ends["held"].keys() == ends["still held"].keys()
    assert ends["first"]["good"] == ends["held"]["good"] == ends["still held"]["good"]
    assert ("length", 8) == (ends["released"]["slow"][0], len(ends["released"]["slow"][1]))
