"""Chameleon under vLLM's LLM class: its answers are vLLM's own, wherever adapters come from."""

import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import pytest

from chameleon_lora.adapters.header import WEIGHTS_NAME
from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.measure.offline import (
    OfflineJob,
    OfflineQuestion,
    OfflineResult,
    Wave,
    run_offline,
)
from chameleon_lora.servers.tiny_model import default_cache_dir, ensure_tiny_model

pytestmark = [pytest.mark.vllm, pytest.mark.slow, pytest.mark.timeout(900)]
RANKS = (4, 8, 16, 4, 8, 16)
TOKENS, BLOCK_TOKENS = 12, 32
FIRST_TEXT_TOKEN, VOCABULARY = 3, 512
ONE_SEAT: dict[str, Any] = {
    "max_loras": 2,
    "max_lora_rank": 16,
    "max_num_seqs": 1,
    "max_num_batched_tokens": 64,
    "max_model_len": 128,
    "block_size": BLOCK_TOKENS,
}
CROWDED: dict[str, Any] = {**ONE_SEAT, "num_gpu_blocks_override": 24}
"""A KV cache with room for a request and for about half of the adapters."""
TWO_RANKS: dict[str, Any] = {"tensor_parallel_size": 2, "distributed_executor_backend": "mp"}
EAGER: dict[str, Any] = {
    "device": {"promotions_per_s": 1000.0, "headroom_share": 0.0},
    "serving": {"debug_checks": True, "lora_backend": "slots"},
}
"""Adapters come into idle KV blocks as fast as they can; all bytes and blocks are checked."""
SMALL_HOST: dict[str, Any] = {"cache": {"host_bytes": 700_000}}
"""Host memory for a rank's part of about half of the adapters: what was evicted is read again."""


@pytest.fixture(scope="module")
def model() -> Path:
    """The tiny Llama."""
    pytest.importorskip("vllm")
    return ensure_tiny_model(default_cache_dir())


@pytest.fixture(scope="module")
def adapters(model: Path, tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    """Six adapters, strong enough to change what is said."""
    root = tmp_path_factory.mktemp("adapters")
    dims = ModelDims.from_model(model)
    return [
        str(make_adapter(root / f"a{seed}", dims, rank, seed=seed, scale=1.0))
        for seed, rank in enumerate(RANKS)
    ]


@pytest.fixture(scope="module")
def questions(adapters: list[str]) -> list[OfflineQuestion]:
    """4 prompts to the base model and to each adapter, more than a block of the prefix cache long."""
    rng = random.Random(26)
    sizes = [BLOCK_TOKENS + rng.randrange(1, BLOCK_TOKENS) for _ in range(4)]
    prompts = [[rng.randrange(FIRST_TEXT_TOKEN, VOCABULARY) for _ in range(n)] for n in sizes]
    return [
        OfflineQuestion(prompt=p, adapter=a, tokens=TOKENS)
        for p in prompts
        for a in (None, *adapters)
    ]


@pytest.fixture(scope="module")
def stock(model: Path, questions: list[OfflineQuestion]) -> list[list[int]]:
    """vLLM's own tokens."""
    found = tokens_of(ask(model, None, questions, ONE_SEAT))
    assert 1 + len(RANKS) == len({tuple(tokens) for tokens in found[: 1 + len(RANKS)]})
    return found


def ask(
    model: Path,
    scheduler: str | None,
    questions: list[OfflineQuestion],
    engine: dict[str, Any],
    settings: dict[str, Any] | None = None,
    openings: Sequence[Literal["nothing", "reset", "sleep"]] = ("nothing",),
) -> OfflineResult:
    """The questions put at once, for each of `openings`, which happens first."""
    waves = [Wave(questions=questions, before=before) for before in openings]
    job = OfflineJob(
        model=str(model), scheduler=scheduler, settings=settings or {}, engine=engine, waves=waves
    )
    return run_offline(job)


def tokens_of(result: OfflineResult, wave: int = 0) -> list[list[int]]:
    """What was answered."""
    return [answer["tokens"] for answer in result["waves"][wave]["answers"]]


def test_answers_are_stock_vllms_and_a_broken_adapter_ends_its_own_requests(
    model: Path, questions: list[OfflineQuestion], stock: list[list[int]], tmp_path: Path
) -> None:
    """With Chameleon's own settings: stock vLLM's tokens, whoever goes first.

    Beside them, requests for a folder without weights end with an error that names it, which LLM raises.
    """
    broken = make_adapter(tmp_path / "broken", ModelDims.from_model(model), 4, seed=9)
    (broken / WEIGHTS_NAME).unlink()
    doomed = [OfflineQuestion(**{**q, "adapter": str(broken)}) for q in questions[:2]]
    result = ask(model, SCHEDULER, [*questions, *doomed], ONE_SEAT)
    *_, first, second = result["waves"][0]["answers"]
    assert stock == tokens_of(result)[:-2]
    for failed in (first, second):
        assert ("error", []) == (failed["finish_reason"], failed["tokens"])
        assert "Adapter 'broken' cannot be loaded" in str(failed["stop_reason"])


@pytest.mark.parametrize("ranks", [{}, TWO_RANKS], ids=["one-rank", "two-ranks"])
def test_answers_are_stock_vllms_while_adapters_come_and_go_in_kv_blocks(
    model: Path, questions: list[OfflineQuestion], stock: list[list[int]], ranks: dict[str, Any]
) -> None:
    """Adapters come from KV blocks that change hands all the time, on one rank and on two.

    The KV cache is emptied in between, by a reset and by sleep. Each that comes from there is compared
    with its host copy, on each rank; an engine that found a difference, or a lost block, would have
    ended. Two ranks have too little host memory as well: in vLLM's issue 20873 answers were wrong with
    two ranks and least recently used adapters evicted from it.
    """
    engine = {**CROWDED, **ranks}
    openings: list[Any] = ["nothing", "reset"] if ranks else ["nothing", "reset", "sleep"]
    settings = {**EAGER, **(SMALL_HOST if ranks else {})}
    result = ask(model, SCHEDULER, questions, engine, settings, openings)
    assert bool(ranks) is (sum(result["counts"]["load_seconds"]["counts"]) > len(RANKS))
    assert [stock] * len(openings) == [tokens_of(result, wave) for wave in range(len(openings))]
    assert 0 < result["counts"]["checks"]
    assert 0 < result["demotions"]["reset"]
    assert 0 < result["demotions"].get("demand", 0) + result["demotions"].get("replaced", 0)


def test_the_cache_costs_no_step_and_no_preemption(
    model: Path, adapters: list[str], questions: list[OfflineQuestion]
) -> None:
    """Where the KV cache is too small for all that runs: as many steps and preemptions as without."""
    engine = {
        **CROWDED,
        "max_num_seqs": 8,
        "num_gpu_blocks_override": 20,
        "enable_prefix_caching": False,  # a preempted request may find its own blocks, or not
    }
    longer = [OfflineQuestion(**{**question, "tokens": 48}) for question in questions[:28]]
    warm_up = [OfflineQuestion(prompt=[5, 6, 7], adapter=adapter, tokens=1) for adapter in adapters]
    waves = [Wave(questions=asked, before="nothing") for asked in (warm_up, longer)]
    found = {}
    for max_bytes in (0, 1 << 60):
        settings = {
            "preset": "vllm",  # an order that does not hang on the clock
            "serving": EAGER["serving"],
            "device": {**EAGER["device"], "max_bytes": max_bytes},
        }
        job = OfflineJob(
            model=str(model), scheduler=SCHEDULER, settings=settings, engine=engine, waves=waves
        )
        found[max_bytes] = run_offline(job)
    without, with_cache = (found[b]["waves"][-1] for b in (0, 1 << 60))
    assert 0 < without["preemptions"]
    assert (without["steps"], without["preemptions"]) == (
        with_cache["steps"],
        with_cache["preemptions"],
    )
    assert tokens_of(found[0], 1) == tokens_of(found[1 << 60], 1)
    assert 0 < found[1 << 60]["promotions"]


PAGED: dict[str, Any] = {"serving": {"lora_backend": "paged"}}
"""Without slots: max_loras stays 2, and a batch mixes as many adapters as it has requests."""


@pytest.mark.parametrize(
    "engine",
    [ONE_SEAT, {**ONE_SEAT, "max_num_seqs": 28}, {**ONE_SEAT, **TWO_RANKS}],
    ids=["one-seat", "all-at-once", "two-ranks"],
)
def test_answers_are_stock_vllms_where_adapters_are_used_where_they_lie(
    model: Path,
    questions: list[OfflineQuestion],
    stock: list[list[int]],
    engine: dict[str, Any],
) -> None:
    """Alone, all in one batch with base requests, and on two ranks, where adapters go and come again."""
    settings = {**PAGED, **(SMALL_HOST if "tensor_parallel_size" in engine else {})}
    result = ask(model, SCHEDULER, questions, engine, settings)
    assert stock == tokens_of(result)
