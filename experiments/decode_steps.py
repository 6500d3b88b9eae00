"""What does a decode step take with many adapters, and a prompt's, over the same without LoRA?

    .venv/bin/python -m experiments.decode_steps --repeats 5 [--smollm2] [--ranks 4 8 16]

Three servers are up at a time and take turns, so that the machine's noise meets them alike; only one has
requests. Stock vLLM has a slot for each adapter of the largest batch, of the largest rank present; ours uses
adapters where they lie; the third has no LoRA. The batch has 64 rows; its adapters are 0 (the base model), 1, 8, 32
or 64. A prompt has 256 tokens. Times are the engines' own (`measure.step_log`): decode, of a step with nearly all rows and
no prompt; burst, of all steps that 64 answers of 40 tokens take, so its inverse is a throughput. Medians of the repeats'
ratios, and their range.
"""

import argparse
import asyncio
import contextlib
import json
import statistics
import sys
import tempfile
from pathlib import Path

from chameleon_lora.adapters.make import ModelDims, make_adapters
from chameleon_lora.bench.replay import Target, replay
from chameleon_lora.engine_vllm.measure.step_log import StepRow, read_step_log
from chameleon_lora.report.table import NUMBERS, Table, markdown_table
from chameleon_lora.servers.launching import (
    BASE_MODEL,
    EngineShape,
    ServedModel,
    chameleon_command,
    cpu_server,
    stock_command,
)
from chameleon_lora.servers.process import running_server
from chameleon_lora.servers.tiny_model import (
    TARGET_MODULES,
    default_cache_dir,
    ensure_demo_model,
    ensure_tiny_model,
)
from chameleon_lora.workload.requests import TimedRequest
from experiments.two_servers import STEPS, TOKEN_IDS, recording_steps

ROWS, PROMPT, COUNTS = 64, 256, (0, 1, 8, 32, 64)
STOCK, OURS, WITHOUT = "stock", "ours", "without"
LAYERS = 6
ANSWER_TOKENS = 40
EACH_ANEW = "--no-enable-prefix-caching"  # the same prompts come again
Steps = dict[str, list[StepRow]]


def main() -> None:
    """Start the servers, take the turns, print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--smollm2", action="store_true", help="in place of the 6-layer model")
    parser.add_argument("--ranks", type=int, nargs="+", default=[4, 8, 16])
    parser.add_argument("--out", type=Path, default=Path("runs/decode"))
    args = parser.parse_args()
    cache = default_cache_dir()
    model = ensure_demo_model(cache) if args.smollm2 else ensure_tiny_model(cache, LAYERS)
    with tempfile.TemporaryDirectory() as scratch, contextlib.ExitStack() as stack:
        served = _served(model, Path(scratch) / "adapters", args.ranks)
        urls = {}
        for arm, command in commands(served).items():
            folder = args.out / arm
            spec = cpu_server(command, folder / "server.log", recording_steps(folder))
            urls[arm] = stack.enter_context(running_server(spec))
            for adapters in (*COUNTS, 1):  # everything is compiled and in host memory afterwards
                burst(urls[arm], served.adapters, 0 if arm == WITHOUT else adapters)
        found = take_turns(urls, served.adapters, args)
    (args.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(told(found))


def _served(model: Path, adapters: Path, ranks: list[int]) -> ServedModel:
    dims = ModelDims.from_model(model)
    make_adapters(adapters, dims, ranks, max(COUNTS), seed=0, target_modules=TARGET_MODULES)
    shape = EngineShape(
        slots=max(COUNTS),
        max_rank=min(rank for rank in (8, 16, 32, 64, 128) if rank >= max(ranks)),
        seats=ROWS,
        batch_tokens=2 * PROMPT,
        context_tokens=2 * PROMPT,
        target_modules=TARGET_MODULES,
    )
    return ServedModel.of(model, adapters, shape)


def commands(served: ServedModel) -> dict[str, tuple[str, ...]]:
    """How each server is started."""
    plain = stock_command(ServedModel(served.model, served.adapters_dir, (), served.flags))
    at, end = plain.index("--enable-lora"), plain.index("--max-cpu-loras") + 2
    words = [*plain[:at], *plain[end:]]
    for flag in ("--max-loras", "--max-lora-rank"):
        place = words.index(flag)
        del words[place : place + 2]
    place = words.index("--lora-target-modules")
    del words[place : place + 1 + len(TARGET_MODULES)]
    words.remove("--lora-modules")
    return {
        STOCK: stock_command(served, (EACH_ANEW,)),
        OURS: chameleon_command(served, (EACH_ANEW,)),
        WITHOUT: (*words, EACH_ANEW),
    }


def burst(
    url: str, names: tuple[str, ...], adapters: int, prompt: int = 3, rows: int = ROWS
) -> None:
    """So many requests at once, of so many adapters in turn, or of the base model alone."""
    tokens = ANSWER_TOKENS if rows > 1 else 1
    chosen = [names[row % adapters] if adapters else BASE_MODEL for row in range(rows)]
    requests = [TimedRequest(row, 0.0, name, prompt, tokens) for row, name in enumerate(chosen)]
    records = asyncio.run(replay(Target(url, BASE_MODEL, TOKEN_IDS), requests))
    assert all(record.error is None for record in records), records


def take_turns(
    urls: dict[str, str], names: tuple[str, ...], args: argparse.Namespace
) -> dict[str, list[float]]:
    """Of each figure its ratio to the server without LoRA, repeat by repeat; and that one's milliseconds."""
    found: dict[str, list[float]] = {}
    for repeat in range(args.repeats):
        base: dict[str, float] = {}
        for arm in (WITHOUT, *((STOCK, OURS) if repeat % 2 == 0 else (OURS, STOCK))):
            for adapters in (0,) if arm == WITHOUT else COUNTS:
                seen = len(read_step_log(args.out / arm / STEPS).steps)
                burst(urls[arm], names, adapters)
                for _ in range(3):
                    burst(urls[arm], names, min(adapters, 1), PROMPT, 1)
                burst(urls[arm], names, 0, 2, 1)  # a step is written when the next one begins
                new = read_step_log(args.out / arm / STEPS).steps[seen:]
                for kind, ms in figures(new).items():
                    base.setdefault(kind, ms)
                    is_base = arm == WITHOUT
                    key = f"{kind}, ms" if is_base else f"{kind}, {arm}, {adapters} adapters"
                    found.setdefault(key, []).append(ms if is_base else ms / base[kind])
        print(json.dumps({key: values[-1] for key, values in found.items()}), file=sys.stderr)
    return found


def figures(steps: list[StepRow]) -> dict[str, float]:
    """The median milliseconds of full decode steps and of the prompts' steps, and those of the whole burst."""
    alone = [step for step in steps if not step.work.decode_requests]
    prompts = [step for step in alone if step.work.prefill_tokens > PROMPT * 0.9]
    full = [s for s in steps if s.work.decode_requests > ROWS * 0.9]
    decode = [s for s in full if not s.work.prefill_tokens]
    others = [s for s in steps if s not in prompts and s.work.prefill_tokens != 2]
    return {
        "decode": 1000 * statistics.median(step.seconds for step in decode),
        "prompt": 1000 * statistics.median(step.seconds for step in prompts),
        "burst": 1000 * sum(step.seconds for step in others),
    }


def told(found: dict[str, list[float]]) -> str:
    """Medians with their ranges, in Markdown."""
    rows = [
        (key, f"{statistics.median(v):.3f} [{min(v):.3f}, {max(v):.3f}]")
        for key, v in found.items()
        if not (
            key.startswith("prompt") and key.endswith((" 8 adapters", "2 adapters", "4 adapters"))
        )
    ]
    head = ("step", "over no LoRA")
    return markdown_table(Table(head, tuple(rows)), ("", NUMBERS))


if __name__ == "__main__":
    main()
