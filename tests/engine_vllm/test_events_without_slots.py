"""An engine without slots answers as merged weights do, whatever happens to its adapters and to it."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.engine_vllm.measure.offline import ENVIRONMENT
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model
from tests.engine_vllm.events_without_slots import BLOCK_TOKENS

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]
ROUNDING = 2e-3
"""Of logits: of two that are nearer to each other, either may be the largest."""
ATTENTION = ["q_proj", "k_proj", "v_proj", "o_proj"]
ADAPTERS: dict[str, dict[str, Any]] = {
    "all": {"r": 16, "target_modules": [*ATTENTION, "gate_proj", "up_proj", "down_proj"]},
    "qkv": {"r": 4, "target_modules": ["q_proj", "k_proj", "v_proj"]},
    "ranks": {
        "r": 8,
        "target_modules": [*ATTENTION, "up_proj"],
        "rank_pattern": {"q_proj": 3, "v_proj": 24, r"layers\.1\.self_attn\.o_proj": 1},
        "alpha_pattern": {"q_proj": 6, "v_proj": 48, r"layers\.1\.self_attn\.o_proj": 2},
    },
    "mlp": {"r": 64, "target_modules": ["gate_proj", "down_proj"]},
    "ends": {"r": 7, "target_modules": ["embed_tokens", "lm_head", "q_proj"]},
    "end": {"r": 1, "target_modules": ["lm_head"]},
}
"""What each adapter is, in PEFT's words."""
AFTER = ("mixed", "chunked", "replaced", "removed", "slept 1", "slept 2")
RESETS = ("reset", "reset_mm", "profiled", "dummy batch", "reloaded")


class MergedComparison:
    """What an engine answered, and what merged weights say to it."""

    def __init__(self, kinds: dict[str, dict[str, Any]], folder: Path) -> None:
        model = ensure_tiny_model(default_cache_dir(), 2)
        self._models: dict[str | None, Any] = {None: plain_model(model)}
        paths = {name: str(folder / name) for name in kinds}
        for seed, (name, words) in enumerate(kinds.items()):
            self._models[name] = merged_model(model, folder / name, seed, words)
        job = {"model": str(model), "adapters": paths}
        result = run(job, folder)
        self.answers: list[dict[str, Any]] = result["answers"]
        self.facts: dict[str, Any] = result["facts"]

    def of(self, event: str) -> list[dict[str, Any]]:
        """The answers of one event."""
        return [answer for answer in self.answers if answer["event"] == event]

    def lack(self, answer: dict[str, Any], name: str | None) -> float:
        """By how much an answer's tokens are, at worst, less likely (in logits) than this model's likeliest."""
        import torch

        prompt, tokens = answer["prompt"], answer["tokens"]
        assert tokens
        with torch.no_grad():
            logits = self._models[name](torch.tensor([prompt + tokens])).logits[0]
        logits = logits[len(prompt) - 1 : -1]
        chosen = logits[torch.arange(len(tokens)), torch.tensor(tokens)]
        return float((logits.max(-1).values - chosen).max())

    def assert_right(self, answer: dict[str, Any]) -> None:
        """It is what its own merged model says, and the base model would have said something else."""
        name = answer["name"]
        assert self.lack(answer, name) < ROUNDING, (answer["event"], name)
        assert name is None or self.lack(answer, None) > ROUNDING, (answer["event"], name)


def plain_model(model: Path) -> Any:
    """The base model in transformers."""
    import torch
    import transformers

    return transformers.AutoModelForCausalLM.from_pretrained(model, dtype=torch.float32).eval()


def merged_model(model: Path, folder: Path, seed: int, words: dict[str, Any]) -> Any:
    """Writes a random adapter as PEFT does; answers the model with it merged into the weights."""
    import peft
    import torch

    torch.manual_seed(seed)
    config = peft.LoraConfig(
        lora_alpha=2 * words["r"], init_lora_weights=False, task_type="CAUSAL_LM", **words
    )
    adapted = peft.get_peft_model(plain_model(model), config)
    adapted.save_pretrained(str(folder), save_embedding_layers=False)
    return adapted.merge_and_unload().eval()


def run(job: dict[str, Any], folder: Path) -> dict[str, Any]:
    """The events, in a process of their own."""
    asked, told = folder / "job.json", folder / "result.json"
    asked.write_text(json.dumps(job), encoding="utf-8")
    root = Path(__file__).resolve().parents[2]
    paths = os.pathsep.join(p for p in (str(root), os.environ.get("PYTHONPATH")) if p)
    subprocess.run(
        [sys.executable, "-m", "tests.engine_vllm.events_without_slots", str(asked), str(told)],
        check=True,
        stdout=sys.stderr,
        env={
            **os.environ,
            **ENVIRONMENT,
            "VLLM_ALLOW_INSECURE_SERIALIZATION": "1",
            "PYTHONPATH": paths,
        },
    )
    result: dict[str, Any] = json.loads(told.read_text(encoding="utf-8"))
    return result


@pytest.fixture(scope="module")
def engine(tmp_path_factory: pytest.TempPathFactory) -> MergedComparison:
    """An engine with memory for all."""
    pytest.importorskip("vllm")
    return MergedComparison(ADAPTERS, tmp_path_factory.mktemp("events"))


@pytest.mark.parametrize("event", [*AFTER, *RESETS])
def test_answers_are_those_of_merged_weights(engine: MergedComparison, event: str) -> None:
    """Of all kinds of adapters in one batch, with base requests, during the event and after it."""
    answers = engine.of(event)
    assert answers
    for answer in answers:
        engine.assert_right(answer)


@pytest.mark.parametrize("event", RESETS)
def test_an_emptied_prefix_cache_gives_nothing(engine: MergedComparison, event: str) -> None:
    """So what follows an event was computed after it."""
    assert {0} == {answer["cached_tokens"] for answer in engine.of(event)}


def test_a_prefix_is_its_own_adapters(engine: MergedComparison) -> None:
    """The same adapter's second request finds it and answers the same; others find nothing."""
    first, other, second, base = engine.of("prefix")
    assert [0, 0, 3 * BLOCK_TOKENS, 0] == [
        answer["cached_tokens"] for answer in (first, other, second, base)
    ]
    assert first["tokens"] == second["tokens"]
    for answer in (first, other, second, base):
        engine.assert_right(answer)


def test_an_adapter_whose_request_runs_can_be_removed(engine: MergedComparison) -> None:
    """`removed` above has what was answered. An id that is listed no longer removes nothing, as in vLLM."""
    assert {"removed all": False, "removed qkv": True} == engine.facts
