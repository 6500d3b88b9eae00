"""Stock vLLM against Chameleon on this machine, in pairs: the figures that README quotes.

    .venv/bin/python -m experiments.live_pairs --pairs 3 --out runs/pairs

Each pair starts both servers in turn (S C, C S, S C, ...), never two at once, with the same flags, on
the tiny model, and measures on each: one adapter's throughput, the gaps of a running stream while
cold adapters come in, and high load with 24 adapters in 4 slots, with the same requests. Stock gets
`--max-cpu-loras 24` and all adapters in host memory before traffic: its best setting. One core
is left to the API server and to this client.
"""

import argparse
import asyncio
import json
import statistics
import sys
from dataclasses import asdict
from itertools import pairwise
from pathlib import Path
from typing import Any

from chameleon_lora.adapters.make import ModelDims, make_adapter
from chameleon_lora.bench.client import Answer, stream_completion
from chameleon_lora.bench.completion import CompletionRequest
from chameleon_lora.bench.replay import Target, open_session, replay
from chameleon_lora.compare.arm_run import measure_capacity
from chameleon_lora.metrics.summary import percentile, summarise
from chameleon_lora.report.table import NUMBERS, Table, markdown_table
from chameleon_lora.servers.launching import (
    BASE_MODEL,
    RUNTIME_LOADING,
    EngineShape,
    ServedModel,
)
from chameleon_lora.servers.process import running_server
from chameleon_lora.servers.tiny_model import TARGET_MODULES
from chameleon_lora.workload.requests import TimedRequest, WorkloadSpec, make_workload
from experiments.two_servers import (
    CHAMELEON,
    LENGTHS,
    STOCK,
    TOKEN_IDS,
    drop_page_cache,
    in_turn,
    served_model,
    server,
)

ADAPTERS, SEATS = 24, 32
SHAPE = EngineShape(seats=SEATS, context_tokens=2048, target_modules=TARGET_MODULES)
LAYERS = 16  # deep enough that the engine, not the client, is what is busy
COLD_EVERY_S, COLD_COUNT, STREAM_TOKENS = 0.2, 24, 1000
SLO_FACTOR = 5.0  # times the mean TTFT of the unloaded server, as in the paper


def main() -> None:
    """Run the pairs and print their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=40.0, help="of high load")
    parser.add_argument("--load", type=float, default=0.95, help="share of stock's capacity")
    parser.add_argument("--rate", type=float, default=None, help="requests/s instead of --load")
    parser.add_argument("--set", action="append", default=[], help="a setting of Chameleon's")
    parser.add_argument("--out", type=Path, default=Path("runs/pairs"))
    args = parser.parse_args()
    args.out.mkdir(parents=True, exist_ok=True)
    served = prepare(args.out)
    results: list[dict[str, Any]] = []
    rate = args.rate
    for pair, arm in in_turn(args.pairs):
        figures, rate = measure(arm, pair, served, rate, args)
        results.append({"arm": arm, "pair": pair, **figures})
        print(json.dumps(results[-1]), file=sys.stderr, flush=True)
        (args.out / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    print(told(results, rate))


def prepare(out: Path) -> ServedModel:
    """Model, adapters, and as many cold adapters for each run as it needs."""
    served = served_model(LAYERS, ADAPTERS, SHAPE)
    dims = ModelDims.from_model(Path(served.model))
    for index in range(COLD_COUNT):
        path = (out / "cold" / f"cold-{index:03d}").absolute()
        if not path.is_dir():
            make_adapter(path, dims, 16, seed=1000 + index)
    return served


def measure(
    arm: str, pair: int, served: ServedModel, rate: float | None, args: argparse.Namespace
) -> tuple[dict[str, Any], float]:
    """Start one server and take all figures; also the rate, found on the first one."""
    folder, names = args.out / f"{pair}-{arm}", served.adapters
    with running_server(server(arm, served, folder, RUNTIME_LOADING, args.set)) as url:
        target = Target(url, BASE_MODEL, TOKEN_IDS)
        warm_up(target, names)
        unloaded = summarise(run(target, names, 2.0, 8.0, 77)).ttft
        assert unloaded is not None
        one = one_adapter(target, names[0])
        gaps = asyncio.run(cold_stream(url, names, args.out / "cold"))
        if rate is None:
            rate = args.load * capacity(target, names)
        records = run(target, names, rate, args.seconds, 5 + pair)
    summary = summarise(records, SLO_FACTOR * unloaded.mean_s)
    (folder / "summary.json").write_text(json.dumps(asdict(summary), indent=1) + "\n")
    assert summary.ttft is not None
    assert summary.token_gap is not None
    return {
        "one_adapter_tokens_per_s": one,
        **gaps,
        "unloaded_ttft_s": unloaded.mean_s,
        "ttft_p50_s": summary.ttft.p50_s,
        "ttft_p99_s": summary.ttft.p99_s,
        "gap_p99_s": summary.token_gap.p99_s,
        "tokens_per_s": summary.output_tokens_per_s,
        "slo_share": summary.slo_share,
        "failed": summary.failed,
        "requests": summary.requests,
        "client_late_s": summary.max_lateness_s,
    }, rate


def run(target: Target, names: tuple[str, ...], rate: float, seconds: float, seed: int) -> Any:
    """Open-loop traffic over all adapters."""
    spec = WorkloadSpec(rate, seconds, 1.0, LENGTHS)
    return asyncio.run(replay(target, make_workload(spec, names, seed)))


def warm_up(target: Target, names: tuple[str, ...]) -> None:
    """Each adapter once, so that both servers begin with all of them in host memory."""
    requests = [TimedRequest(i, 0.1 * i, name, 8, 4) for i, name in enumerate(names)]
    asyncio.run(replay(target, requests))


def capacity(target: Target, names: tuple[str, ...]) -> float:
    """Requests/s with as much work as the server can take."""
    requests = make_workload(WorkloadSpec(50.0, 8.0, 1.0, LENGTHS), names, 999)[:256]
    return measure_capacity(target, requests, seats=2 * SEATS)


def one_adapter(target: Target, name: str) -> float:
    """Output tokens/s of 96 requests at once for one adapter; the median of three."""
    requests = [TimedRequest(i, 0.0, name, 16, 48) for i in range(96)]
    return statistics.median(
        summarise(asyncio.run(replay(target, requests))).output_tokens_per_s for _ in range(3)
    )


async def cold_stream(url: str, names: tuple[str, ...], cold: Path) -> dict[str, float]:
    """P99 gap of one stream: alone, beside requests for a warm adapter, beside cold adapters."""
    async with open_session() as session:

        async def visit(name: str) -> None:
            request = CompletionRequest(name, tuple(range(5, 13)), 2)
            await stream_completion(session, url, request, Answer(), clock)

        async def come_in(name: str, path: Path) -> None:
            await asyncio.to_thread(drop_page_cache, path)
            body = {"lora_name": name, "lora_path": str(path.absolute())}
            async with session.post(f"{url}/v1/load_lora_adapter", json=body) as response:
                assert response.status == 200, await response.text()
            await visit(name)

        clock = asyncio.get_running_loop().time
        alone = await stream_beside(session, url, names[0], [])
        warm = await stream_beside(session, url, names[0], [lambda: visit(names[1])] * COLD_COUNT)
        loads = [lambda p=path: come_in(p.name, p) for path in sorted(cold.iterdir())]
        beside_cold = await stream_beside(session, url, names[0], loads)
    return {"gap_alone_s": alone, "gap_warm_s": warm, "gap_cold_s": beside_cold}


async def stream_beside(
    session: Any, url: str, name: str, visits: list[Any], every_s: float = COLD_EVERY_S
) -> float:
    """P99 of the gaps of a stream while visits begin at such intervals."""
    answer, clock = Answer(), asyncio.get_running_loop().time
    request = CompletionRequest(name, tuple(range(20, 36)), STREAM_TOKENS)
    stream = asyncio.create_task(stream_completion(session, url, request, answer, clock))
    while len(answer.token_times_s) < 20:
        await asyncio.sleep(0.01)
    begun, first = [], len(answer.token_times_s)
    for visit in visits:
        if stream.done():
            break
        begun.append(asyncio.create_task(visit()))
        await asyncio.sleep(every_s)
    last = len(answer.token_times_s) if visits else None
    await asyncio.gather(stream, *begun)
    assert answer.error is None, answer.error
    times = answer.token_times_s[first:last]
    assert len(times) > 100, f"only {len(times)} tokens came while the visits lasted"
    return percentile([b - a for a, b in pairwise(times)], 99.0)


def told(results: list[dict[str, Any]], rate: float | None) -> str:
    """Median of each arm and median of the ratios pair by pair, in Markdown."""
    arms = {
        arm: sorted((r for r in results if r["arm"] == arm), key=lambda r: r["pair"])
        for arm in (STOCK, CHAMELEON)
    }
    for result in results:
        result["rise_over_quiet"] = result["gap_cold_s"] / result["gap_alone_s"]
        result["rise_over_warm"] = result["gap_cold_s"] / result["gap_warm_s"]
    rows = []
    for key in (k for k in arms[STOCK][0] if k not in ("arm", "pair")):
        stock, ours = ([row[key] for row in arms[arm]] for arm in ("stock", "chameleon"))
        ratios = [c / s for s, c in zip(stock, ours, strict=True) if s]
        ratio = f"{statistics.median(ratios):.3f}" if ratios else ""
        medians = (f"{statistics.median(values):.4g}" for values in (stock, ours))
        rows.append((key, *medians, ratio))
    table = Table(("figure", "stock", "Chameleon", "ratio"), tuple(rows))
    kinds = ("", *[NUMBERS] * 3)
    return f"high load: {rate:.2f} requests/s\n\n{markdown_table(table, kinds)}"


if __name__ == "__main__":
    main()
