"""Adapters as trainers write them: each is served as PEFT answers, or refused with the words that are due."""

import json
import os
import subprocess
import sys
from math import prod
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.adapters.config import CONFIG_NAME
from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.inspect import AdapterLimits, inspect_adapter
from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.measure.offline import (
    OfflineJob,
    OfflineQuestion,
    Wave,
    run_offline,
)
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model

RECORD = Path(__file__).parents[1] / "data" / "adapter_corpus.jsonl"
ITEM_BYTES = {"F32": 4, "F16": 2, "BF16": 2}
ENGINE: dict[str, Any] = {
    "max_loras": 2, "max_lora_rank": 16, "max_num_seqs": 4, "max_num_batched_tokens": 64, "max_model_len": 64,
}  # fmt: skip
PROMPT, TOKENS = [17, 301, 44, 250, 9, 123, 77], 12


def lines_of(path: Path) -> list[Any]:
    """The corpus's adapters."""
    return [json.loads(line) for line in path.read_text().splitlines()]


def write_empty(folder: Path, line: Any) -> None:
    """The recorded configuration, and weights of the recorded names, types and shapes, all zero."""
    folder.mkdir()
    (folder / CONFIG_NAME).write_text(json.dumps(line["config"]))
    if line["tensors"] is None:
        (folder / "adapter_model.bin").touch()
        return
    header, end = {}, 0
    for name, (dtype, shape) in line["tensors"].items():
        begin, end = end, end + prod(shape) * ITEM_BYTES[dtype]
        header[name] = {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}
    raw = json.dumps(header).encode()
    with (folder / WEIGHTS_NAME).open("wb") as file:
        file.write(len(raw).to_bytes(8, "little") + raw)
        file.truncate(8 + len(raw) + end)


@pytest.mark.parametrize("line", lines_of(RECORD), ids=lambda line: line["name"])
def test_the_check_takes_what_is_served_and_says_why_not(line: Any, tmp_path: Path) -> None:
    """By configuration and header alone, as for a server that generates."""
    write_empty(tmp_path / "a", line)
    problems = inspect_adapter(tmp_path / "a", AdapterLimits(16, has_head=False)).problems
    if line["check"] is None:
        assert () == problems
    else:
        assert any(line["check"] in problem for problem in problems), problems
        assert all("way out: " in problem for problem in problems)


@pytest.mark.vllm
@pytest.mark.long
@pytest.mark.timeout(1800)
def test_what_is_served_answers_as_pefts_own_model(tmp_path: Path) -> None:
    """Token by token, all in one engine of two slots, in one batch after another; the record is as made now."""
    pytest.importorskip("vllm")
    pytest.importorskip("peft")
    subprocess.run(
        [sys.executable, "-m", "experiments.adapter_corpus", str(tmp_path)],
        env={**os.environ, "HF_HUB_OFFLINE": "1"}, check=True,
    )  # fmt: skip
    made = lines_of(tmp_path / "corpus.jsonl")
    assert lines_of(RECORD) == [{k: v for k, v in line.items() if k != "tokens"} for line in made]
    asked = [line for line in made if line["tokens"] is not None or line["engine"]]
    questions = [
        OfflineQuestion(prompt=PROMPT, adapter=str(tmp_path / "adapters" / line["name"]), tokens=TOKENS)
        for line in asked
    ]  # fmt: skip
    job = OfflineJob(
        model=str(ensure_tiny_model(default_cache_dir(), 2)),
        scheduler=SCHEDULER,
        settings={"serving": {"converts_bin": True}},
        engine=ENGINE,
        waves=[Wave(questions=questions, before="nothing")],
    )
    for line, answer in zip(asked, run_offline(job)["waves"][0]["answers"], strict=True):
        if line["engine"]:
            assert ("error", []) == (answer["finish_reason"], answer["tokens"]), line["name"]
            assert line["engine"] in str(answer["stop_reason"]), line["name"]
        else:
            assert line["tokens"] == answer["tokens"], (line["name"], answer["stop_reason"])
