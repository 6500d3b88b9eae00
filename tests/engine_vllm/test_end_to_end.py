"""Chameleon under vLLM's LLM class: its answers are vLLM's own."""

import json
import random
import subprocess
import sys
from pathlib import Path

import pytest
from tests.engine_vllm import offline_answers
from tests.engine_vllm.offline_answers import BLOCK_TOKENS, Answer, Job, Question

from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.bench.model import default_cache_dir, ensure_tiny_model
from chameleon_lora.engine_vllm import SCHEDULER

pytestmark = [pytest.mark.vllm, pytest.mark.slow]
RANKS = (4, 8, 16, 4, 8, 16)
TOKENS = 16
FIRST_TEXT_TOKEN, VOCABULARY = 3, 512


@pytest.fixture(scope="module")
def model() -> Path:
    """The tiny Llama."""
    pytest.importorskip("vllm")
    return ensure_tiny_model(default_cache_dir())


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Six adapters, strong enough to change what is said."""
    root = tmp_path_factory.mktemp("adapters")
    dims = ModelDims.from_model(model)
    return [
        make_adapter(root / f"a{seed}", dims, rank, seed=seed, scale=1.0)
        for seed, rank in enumerate(RANKS)
    ]


def prompts(count: int) -> list[list[int]]:
    """Random token ids, more than fill a block of the prefix cache."""
    rng = random.Random(26)
    sizes = [BLOCK_TOKENS + rng.randrange(1, BLOCK_TOKENS) for _ in range(count)]
    return [[rng.randrange(FIRST_TEXT_TOKEN, VOCABULARY) for _ in range(n)] for n in sizes]


def ask(
    model: Path, scheduler: str | None, questions: list[Question], folder: Path
) -> list[Answer]:
    """The answers of one vLLM in a process of its own."""
    answers = folder / f"answers-{scheduler}.json"
    job = Job(
        model=str(model),
        scheduler=scheduler,
        questions=questions,
        tokens=TOKENS,
        answers=str(answers),
    )
    job_file = folder / f"job-{scheduler}.json"
    job_file.write_text(json.dumps(job))
    command = [sys.executable, str(offline_answers.__file__), str(job_file)]
    process = subprocess.run(command, capture_output=True, text=True, check=False, timeout=300)
    assert 0 == process.returncode, process.stderr[-4000:]
    found: list[Answer] = json.loads(answers.read_text())
    return found


def test_offline_answers_are_stock_vllms_and_a_broken_adapter_ends_its_own_requests(
    model: Path, adapters: list[Path], tmp_path: Path
) -> None:
    """4 prompts to 6 adapters and the base model, two slots: stock vLLM's tokens, whoever goes first.

    Beside them, requests for a folder without weights end with an error that names it.
    """
    broken = make_adapter(tmp_path / "broken", ModelDims.from_model(model), 4, seed=9)
    (broken / WEIGHTS_NAME).unlink()
    folders = (None, *map(str, adapters))
    texts = prompts(4)
    questions = [Question(prompt=text, adapter=folder) for text in texts for folder in folders]
    doomed = [Question(prompt=text, adapter=str(broken)) for text in texts[:2]]

    expected = ask(model, None, questions, tmp_path)
    *found, first, second = ask(model, SCHEDULER, [*questions, *doomed], tmp_path)

    assert expected == found
    assert len(folders) == len({tuple(answer["tokens"]) for answer in expected[: len(folders)]})
    for failed in (first, second):
        assert ("error", []) == (failed["finish_reason"], failed["tokens"])
        assert "Adapter 'broken' cannot be loaded" in str(failed["stop_reason"])
