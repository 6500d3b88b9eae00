"""What adapters in idle KV memory cost and give, in one process, on the real engine.

    .venv/bin/python -m experiments.device_tier pressure   # steps and preemptions, with and without
    .venv/bin/python -m experiments.device_tier checks     # bytes from KV blocks against host copies
    .venv/bin/python -m experiments.device_tier burst      # a burst meets a full cache, and an empty one
    .venv/bin/python -m experiments.device_tier resident   # adapters on the device for the same bytes
    .venv/bin/python -m experiments.device_tier prefix     # prefix hits, with and without headroom

Each arm is a run of `chameleon_lora.engine_vllm.measure.offline`, one after the other, with the same requests.
"""

import argparse
import random
import statistics
from collections.abc import Sequence
from typing import Any
from zlib import crc32

from chameleon_lora.adapters.make import LINEAR_MODULES, ModelDims, make_adapter
from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.measure.offline import (
    OfflineJob,
    OfflineQuestion,
    OfflineResult,
    Wave,
    run_offline,
)
from chameleon_lora.metrics.summary import percentile
from chameleon_lora.report.table import Table, markdown_table
from chameleon_lora.servers.tiny_model import TARGET_MODULES, default_cache_dir, ensure_tiny_model

TEXT_TOKENS = (3, 512)  # the tiny model's ids; those before are special

OFF: dict[str, Any] = {"device": {"max_bytes": 0}}
FAST: dict[str, Any] = {"promotions_per_s": 1000.0}
IGNORE: dict[str, Any] = {"prefix_half_life_s": 0.0}
IN_TURN: dict[str, Any] = {"preset": "vllm", "serving": {"lora_backend": "slots"}}
"""First come, first served: an order that does not hang on the clock."""
EAGER: dict[str, Any] = {
    "preset": "vllm",  # which keeps adapters out of KV blocks: max_bytes None lets them in
    "device": {"max_bytes": None, "promotions_per_s": 1000.0, "headroom_share": 0.0},
    "serving": {"debug_checks": True, "lora_backend": "slots"},
}


CALM: dict[str, Any] = {**EAGER, "device": {**EAGER["device"], "promotions_per_s": 20.0}}
"""The same at the default rate of promotions."""


def main() -> None:
    """Run one study and print its table."""
    studies = {f.__name__: f for f in (pressure, checks, burst, resident, prefix)}
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("study", choices=list(studies))
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    parser.add_argument("--prefix-caching", action="store_true", help="for pressure")
    parser.add_argument("--requests", type=int, default=240)
    parser.add_argument("--repeats", type=int, default=3)
    args = parser.parse_args()
    print(studies[args.study](args))


def pressure(args: argparse.Namespace) -> str:
    """Requests that do not fit beside each other: is any preempted for the cache's sake?"""
    adapters = make_adapters("mixed", 16, (4, 8, 16))
    rng = random.Random(1)
    questions = [
        question(rng, rng.choice([None, *adapters]), 20, 60 + rng.randrange(60))
        for _ in range(args.requests)
    ]
    engine = engine_of(args, max_num_seqs=8, num_gpu_blocks_override=24, max_loras=2)
    engine["enable_prefix_caching"] = args.prefix_caching
    warm_up = [question(rng, adapter, 8, 1) for adapter in adapters]
    waves = [Wave(questions=asked, before="nothing") for asked in (warm_up, questions)]
    found = {
        name: run(settings, engine, waves)
        for name, settings in {"without": IN_TURN, "with": EAGER, "with, calm": CALM}.items()
    }
    rows = [
        (name, r["waves"][-1]["steps"], r["waves"][-1]["preemptions"], r["promotions"],
         r["demotions"].get("demand", 0), r["counts"]["checks"])
        for name, r in found.items()
    ]  # fmt: skip
    tokens = [[a["tokens"] for a in r["waves"][-1]["answers"]] for r in found.values()]
    same = sum(one == two == three for one, two, three in zip(*tokens, strict=True))
    head = ("cache", "steps", "preemptions", "promotions", "demoted on demand", "bytes checked")
    return f"{table(head, rows)}\n\n{same} of {len(questions)} answers are the same tokens."


def checks(args: argparse.Namespace) -> str:
    """Short requests over 16 adapters in 2 slots: each activation from KV blocks is compared."""
    adapters = make_adapters("mixed", 16, (4, 8, 16))
    rng = random.Random(5)
    waves = []
    for _ in range(4):
        asked = [question(rng, rng.choice(adapters), 6, 2) for _ in range(args.requests)]
        waves.append(Wave(questions=asked, before="nothing"))
    engine = engine_of(args, max_num_seqs=2, num_gpu_blocks_override=48, max_loras=2)
    rows = []
    for name, settings in {"without": IN_TURN, "with": EAGER}.items():
        found = run(settings, engine, waves)
        counts, demotions = found["counts"], found["demotions"]
        sources = {
            source: sum(stall["counts"])
            for source, stall in counts["activation_stall_seconds"].items()
        }
        answers = [a["tokens"] for wave in found["waves"] for a in wave["answers"]]
        rows.append((name, sources["device"], sources["host"], sources["disk"], counts["checks"],
                     found["promotions"], sum(demotions.values()), crc32(str(answers).encode())))  # fmt: skip
    head = ("cache", "from device", "from host", "from disk", "checked and equal", "promotions",
            "demotions", "CRC of all tokens")  # fmt: skip
    return table(head, rows)


def burst(args: argparse.Namespace) -> str:
    """Base-model requests that take the whole KV cache at once: how long till they are admitted?"""
    adapters = make_adapters("mixed", 24, (4, 8, 16))
    rng = random.Random(2)
    fill = [question(rng, adapter, 8, 8) for adapter in adapters * 2]
    crowd = [question(rng, None, 64, 60) for _ in range(24)]
    waves = []
    for _ in range(args.repeats):
        waves += [
            Wave(questions=fill, before="reset"),
            Wave(questions=crowd, before="nothing"),  # meets a full cache
            Wave(questions=crowd, before="reset"),  # and an empty one
        ]
    engine = engine_of(args, max_num_seqs=32, num_gpu_blocks_override=130, max_loras=4)
    engine["max_num_batched_tokens"] = 2048
    engine["enable_prefix_caching"] = False
    found = run({"device": {"promotions_per_s": 1000.0, "headroom_share": 0.0}}, engine, waves)
    rows = []
    for repeat in range(args.repeats):
        filled, full, empty = found["waves"][3 * repeat : 3 * repeat + 3]
        for name, wave in (("full", full), ("empty", empty)):
            waits = [1e3 * answer["wait_s"] for answer in wave["answers"]]
            held = filled["held_blocks"] if name == "full" else 0
            rows.append((name, held, f"{statistics.median(waits):.2f}",
                         f"{percentile(waits, 99):.2f}", wave["steps"]))  # fmt: skip
    head = ("cache", "blocks held", "median wait, ms", "P99 wait, ms", "steps")
    return table(head, rows)


def resident(args: argparse.Namespace) -> str:
    """Ranks 8 to 128 in equal number: bytes of an adapter in blocks against vLLM's padded slot."""
    ranks = (8, 16, 32, 64, 128)
    rows = []
    for name, layers in {"q, k, v, o": TARGET_MODULES, "all linear": LINEAR_MODULES}.items():
        adapters = make_adapters(f"ranks-{len(layers)}", 20, ranks, layers)
        rng = random.Random(3)
        questions = [question(rng, adapter, 8, 8) for adapter in adapters * 3]
        engine = engine_of(args, max_num_seqs=2, num_gpu_blocks_override=2400, max_loras=2)
        engine["max_lora_rank"] = max(ranks)
        settings = {"device": {"promotions_per_s": 1000.0, "headroom_share": 0.0}}
        found = run(settings, engine, [Wave(questions=questions, before="nothing")] * 2)
        wave = found["waves"][-1]
        held_bytes, slot_bytes = wave["held_blocks"] * found["block_bytes"], found["slot_bytes"]
        rows.append((name, wave["held_adapters"], wave["held_blocks"], f"{held_bytes / 1e6:.2f}",
                     f"{slot_bytes / 1e6:.2f}", f"{held_bytes / slot_bytes:.2f}",
                     f"{wave['held_adapters'] * slot_bytes / held_bytes:.2f}"))  # fmt: skip
    head = ("adapters change", "adapters in blocks", "blocks", "MB", "MB of one padded slot",
            "slots for these MB", "adapters in blocks / in slots")  # fmt: skip
    return table(head, rows)


def prefix(args: argparse.Namespace) -> str:
    """Prompts that share prefixes beside many adapters: prefix tokens found, by headroom."""
    adapters = make_adapters("mixed", 48, (4, 8, 16))
    rng = random.Random(4)
    prefixes = [[rng.randrange(*TEXT_TOKENS) for _ in range(160)] for _ in range(6)]
    waves = []
    for _ in range(6):
        questions = []
        for _ in range(args.requests // 6):
            asked = question(rng, None, 8, 8)
            asked["prompt"] = rng.choice(prefixes) + asked["prompt"]
            questions += [asked, question(rng, rng.choice(adapters), 16, 8)]
        waves.append(Wave(questions=questions, before="nothing"))
    engine = engine_of(args, max_num_seqs=2, num_gpu_blocks_override=160, max_loras=2)
    rows = []
    for name, settings in {
        "no cache of adapters": OFF,
        "headroom 0, misses ignored": {"device": {**FAST, "headroom_share": 0.0, **IGNORE}},
        "headroom 0.1, misses ignored": {"device": {**FAST, **IGNORE}},
        "headroom 0.3, misses ignored": {"device": {**FAST, "headroom_share": 0.3, **IGNORE}},
        "headroom 0.1, misses heeded (default)": {"device": FAST},
    }.items():
        found = run(settings, engine, waves)
        hits = sum(wave["cached_tokens"] for wave in found["waves"])
        asked_tokens = sum(len(q["prompt"]) for wave in waves for q in wave["questions"])
        rows.append((name, f"{hits / asked_tokens:.3f}", found["waves"][-1]["held_adapters"],
                     found["promotions"], found["demotions"].get("demand", 0),
                     found["demotions"].get("prefix", 0)))  # fmt: skip
    head = ("arm", "prefix tokens found", "adapters in blocks", "promotions", "demoted on demand",
            "for prefixes")  # fmt: skip
    return table(head, rows)


def engine_of(args: argparse.Namespace, **more: Any) -> dict[str, Any]:
    """Arguments of vLLM's LLM."""
    engine = {
        "max_lora_rank": 16,
        "max_num_batched_tokens": 256,
        "max_model_len": 256,
        "block_size": 32,
        **more,
    }
    if args.tensor_parallel_size > 1:
        engine["tensor_parallel_size"] = args.tensor_parallel_size
        engine["distributed_executor_backend"] = "mp"
    return engine


def run(settings: dict[str, Any], engine: dict[str, Any], waves: list[Wave]) -> OfflineResult:
    """One engine, in a process of its own."""
    job = OfflineJob(
        model=str(ensure_tiny_model(default_cache_dir())),
        scheduler=SCHEDULER,
        settings=settings,
        engine=engine,
        waves=waves,
    )
    return run_offline(job)


def make_adapters(
    name: str, count: int, ranks: Sequence[int], layers: Sequence[str] = ()
) -> list[str]:
    """Their folders, made once."""
    dims = ModelDims.from_model(ensure_tiny_model(default_cache_dir()))
    root = default_cache_dir() / f"bench-{name}"
    paths = [root / f"a{index}" for index in range(count)]
    for index, path in enumerate(paths):
        if not path.exists():
            rank = ranks[index % len(ranks)]
            make_adapter(
                path,
                dims,
                rank,
                seed=index,
                scale=1.0,
                target_modules=tuple(layers or LINEAR_MODULES),
            )
    return [str(path) for path in paths]


def question(rng: random.Random, adapter: str | None, prompt: int, tokens: int) -> OfflineQuestion:
    """A prompt of random tokens."""
    return OfflineQuestion(
        prompt=[rng.randrange(*TEXT_TOKENS) for _ in range(prompt)], adapter=adapter, tokens=tokens
    )


def table(head: tuple[str, ...], rows: Sequence[Sequence[object]]) -> str:
    """In Markdown."""
    return markdown_table(Table(head, tuple(tuple(map(str, row)) for row in rows)), ())


if __name__ == "__main__":
    main()
