"""What does an adapter cost that was never asked for before: its own request, and the streams beside it?

    .venv/bin/python -m experiments.cold_loads --pairs 5 [--smollm2 --every 1] [--set serving.lora_backend=paged]

Both servers in turn (S C, C S, ...), never two at once, same flags; stock gets --max-cpu-loras for all. On each:
the time to the first token of an adapter in host memory, and of one that is loaded first (its load's request
included), alone and while a stream runs; and the P99 between tokens of that stream alone, beside requests for
an adapter in host memory, and beside as many cold adapters. One core is left to the API server and this client.
"""

import argparse
import asyncio
import dataclasses
import functools
import json
import statistics
import sys
from collections.abc import Callable, Coroutine
from pathlib import Path
from typing import Any

from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.bench.client import Answer, stream_completion
from chameleon_lora.bench.completion import CompletionRequest
from chameleon_lora.bench.replay import Target, open_session
from chameleon_lora.report.table import NUMBERS, Table, markdown_table
from chameleon_lora.servers.launching import BASE_MODEL, RUNTIME_LOADING, EngineShape, ServedModel
from chameleon_lora.servers.process import running_server
from chameleon_lora.servers.tiny_model import (
    TARGET_MODULES,
    default_cache_dir,
    ensure_adapters,
    ensure_demo_model,
)
from experiments.live_pairs import stream_beside, warm_up
from experiments.two_servers import (
    CHAMELEON,
    STOCK,
    TOKEN_IDS,
    drop_page_cache,
    in_turn,
    served_model,
    server,
)

ADAPTERS, LAYERS, RANK = 8, 16, 16
COLD = 32  # of each kind: alone, and beside the stream
SHAPE = EngineShape(seats=32, context_tokens=2048, target_modules=TARGET_MODULES)
Visit = Callable[[], Coroutine[Any, Any, None]]


def main() -> None:
    """Run the pairs and print their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--smollm2", action="store_true", help="in place of the tiny model")
    parser.add_argument("--every", type=float, default=0.2, help="seconds between cold adapters")
    parser.add_argument("--set", action="append", default=[], help="a setting of Chameleon's")
    parser.add_argument("--out", type=Path, default=Path("runs/cold"))
    args = parser.parse_args()
    served = _served(smollm2=args.smollm2)
    cold = _cold_adapters(served, args.out.absolute())
    found: dict[str, list[dict[str, float]]] = {STOCK: [], CHAMELEON: []}
    for pair, arm in in_turn(args.pairs):
        folder = args.out / f"{pair}-{arm}"
        its = served if arm != STOCK else dataclasses.replace(served, flags=_with_room(served))
        with running_server(server(arm, its, folder, RUNTIME_LOADING, args.set)) as url:
            warm_up(Target(url, BASE_MODEL, TOKEN_IDS), served.adapters)
            figures = asyncio.run(measure(url, served.adapters, cold, args.every))
        found[arm].append(figures)
        print(json.dumps({"pair": pair, "arm": arm, **figures}), file=sys.stderr, flush=True)
    (args.out / "results.json").write_text(json.dumps(found, indent=1) + "\n")
    print(told(found))


def _served(*, smollm2: bool) -> ServedModel:
    if not smollm2:
        return served_model(LAYERS, ADAPTERS, SHAPE)
    cache = default_cache_dir()
    model = ensure_demo_model(cache)
    return ServedModel.of(model, ensure_adapters(model, cache, ADAPTERS), SHAPE)


def _with_room(served: ServedModel) -> tuple[str, ...]:
    """Stock's flags: host memory for every adapter that there will be."""
    return (*served.flags, "--max-cpu-loras", str(ADAPTERS + 2 * COLD))


def _cold_adapters(served: ServedModel, out: Path) -> list[Path]:
    dims = ModelDims.from_model(Path(served.model))
    folder = out / Path(served.model).name
    paths = [folder / f"cold-{index:03d}" for index in range(2 * COLD)]
    for index, path in enumerate(paths):
        if not path.is_dir():
            make_adapter(path, dims, RANK, seed=1000 + index, target_modules=TARGET_MODULES)
    return paths


async def measure(
    url: str, names: tuple[str, ...], cold: list[Path], every_s: float
) -> dict[str, float]:
    """All figures of one server, in seconds."""
    async with open_session() as session:
        clock = asyncio.get_running_loop().time

        async def visit(times_s: list[float], name: str, path: Path | None) -> None:
            """One request, from before its adapter's load to its first token."""
            if path is not None:
                await asyncio.to_thread(drop_page_cache, path)
            begin_s, answer = clock(), Answer()
            if path is not None:
                body = {"lora_name": name, "lora_path": str(path)}
                async with session.post(f"{url}/v1/load_lora_adapter", json=body) as response:
                    assert response.status == 200, await response.text()
            request = CompletionRequest(name, tuple(range(5, 13)), 2)
            await stream_completion(session, url, request, answer, clock)
            assert answer.error is None, answer.error
            times_s.append(answer.token_times_s[0] - begin_s)

        def visits(times_s: list[float], paths: list[Path]) -> list[Visit]:
            if not paths:
                return [functools.partial(visit, times_s, names[1], None)] * COLD
            return [functools.partial(visit, times_s, path.name, path) for path in paths]

        first: dict[str, list[float]] = {"warm": [], "cold": []}
        alone: dict[str, list[float]] = {"warm": [], "cold": []}
        gaps = {"quiet": await stream_beside(session, url, names[0], [])}
        for kind, begin in (("warm", None), ("cold", 0)):
            paths = [] if begin is None else cold[begin : begin + COLD]
            due = visits(first[kind], paths)
            gaps[kind] = await stream_beside(session, url, names[0], due, every_s)
        for kind, begin in (("warm", None), ("cold", COLD)):
            for each in visits(alone[kind], [] if begin is None else cold[begin : begin + COLD]):
                await each()
    return {
        **{f"alone: {kind} first token": statistics.median(s) for kind, s in alone.items()},
        **{f"beside: {kind} first token": statistics.median(s) for kind, s in first.items()},
        **{f"stream's P99 gap, {kind}": gap_s for kind, gap_s in gaps.items()},
        "alone: cold over warm": statistics.median(alone["cold"])
        / statistics.median(alone["warm"]),
        "beside: cold over warm": statistics.median(first["cold"])
        / statistics.median(first["warm"]),
        "gap: warm over quiet": gaps["warm"] / gaps["quiet"],
        "gap: cold over quiet": gaps["cold"] / gaps["quiet"],
    }


def told(found: dict[str, list[dict[str, float]]]) -> str:
    """The medians with their ranges, and the medians of the ratios pair by pair, in Markdown."""
    rows = []
    for key in found[STOCK][0]:
        stock, ours = ([each[key] for each in found[arm]] for arm in (STOCK, CHAMELEON))
        ratios = [c / s for s, c in zip(stock, ours, strict=True)]
        rows.append((key, *map(_in_short, (stock, ours, ratios))))
    table = Table(("figure (s, or a ratio)", "stock", "Chameleon", "ratio"), tuple(rows))
    return markdown_table(table, ("", *[NUMBERS] * 3))


def _in_short(values: list[float]) -> str:
    return f"{statistics.median(values):.3g} [{min(values):.3g}, {max(values):.3g}]"


if __name__ == "__main__":
    main()
