"""Answers of vLLM's LLM class with or without Chameleon; a program, for a process holds one vLLM.

python offline_answers.py JOB writes JOB's answers to the file that JOB names.
"""

import json
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, TypedDict


class Question(TypedDict):
    """One greedy completion; `adapter` is a folder, None asks the base model."""

    prompt: list[int]
    adapter: str | None


class Job(TypedDict):
    """What to ask, of which model, under which scheduler (None: vLLM's own)."""

    model: str
    scheduler: str | None
    questions: list[Question]
    tokens: int
    answers: str


class Answer(TypedDict):
    """Its tokens, and why it ended."""

    tokens: list[int]
    finish_reason: str
    stop_reason: str | int | None


BLOCK_TOKENS = 32
ENVIRONMENT = {
    "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "VLLM_LOGGING_LEVEL": "ERROR",
    "HF_HUB_OFFLINE": "1",
}


def answer(job: Job) -> list[Answer]:
    """All questions put at once, one running at a time, with two slots."""
    from vllm import LLM, SamplingParams

    llm = LLM(
        job["model"],
        scheduler_cls=job["scheduler"],
        skip_tokenizer_init=True,
        enable_lora=True,
        max_loras=2,
        max_lora_rank=16,
        max_num_seqs=1,
        max_num_batched_tokens=64,
        max_model_len=128,
        block_size=BLOCK_TOKENS,
        dtype="float32",
        enforce_eager=True,
    )
    params = SamplingParams(
        max_tokens=job["tokens"], temperature=0, ignore_eos=True, detokenize=False
    )
    done = llm.generate(
        [{"prompt_token_ids": question["prompt"]} for question in job["questions"]],
        params,
        lora_request=_lora_requests(job["questions"]),
        use_tqdm=False,
    )
    completions = [request.outputs[0] for request in done]
    return [
        Answer(
            tokens=list(completion.token_ids),
            finish_reason=completion.finish_reason,
            stop_reason=completion.stop_reason,
        )
        for completion in completions
    ]


def _lora_requests(questions: Sequence[Question]) -> list[Any]:
    """One for each question, the same for the same folder."""
    from vllm.lora.request import LoRARequest

    folders = sorted({q["adapter"] for q in questions if q["adapter"] is not None})
    known = {
        folder: LoRARequest(Path(folder).name, number, folder)
        for number, folder in enumerate(folders, start=1)
    }
    return [None if q["adapter"] is None else known[q["adapter"]] for q in questions]


if __name__ == "__main__":
    os.environ.update(ENVIRONMENT)
    asked: Job = json.loads(Path(sys.argv[1]).read_text(encoding="utf-8"))
    Path(asked["answers"]).write_text(json.dumps(answer(asked)), encoding="utf-8")
