"""How long activated requests wait for their adapter, on live servers: stock vLLM against Chameleon.

    .venv/bin/python -m experiments.live_adapters --pairs 3 --seconds 30

64 adapters in 4 slots. Both servers in turn (S C, C S, ...), same flags and requests; stock keeps all
adapters in host memory from its start on (`--max-cpu-loras 64`, its best setting), Chameleon reads
each from disk when it is first named. What a request waits for its adapter is, on stock, the load and
the activation inside its first step; on Chameleon, from its arrival until host memory has the adapter,
and the activation inside the step.
"""

import argparse
import asyncio
import sys
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from chameleon_lora.bench.replay import Target, replay
from chameleon_lora.engine_vllm.measure.step_log import read_step_log
from chameleon_lora.metrics.summary import percentile, summarise
from chameleon_lora.report.table import Table, markdown_table
from chameleon_lora.servers.launching import BASE_MODEL, EngineShape, ServedModel
from chameleon_lora.servers.process import running_server
from chameleon_lora.servers.tiny_model import TARGET_MODULES
from chameleon_lora.workload.requests import WorkloadSpec, make_workload
from experiments.two_servers import (
    LENGTHS,
    STEPS,
    STOCK,
    TOKEN_IDS,
    in_turn,
    recording_steps,
    served_model,
    server,
)

ADAPTERS, LAYERS = 64, 16
SHAPE = EngineShape(seats=32, target_modules=TARGET_MODULES)
HEAD = ("pair", "server", "activations", "from device", "host", "disk", "wait P50, ms", "P99",
        "warm P50, ms", "P99", "TTFT P50, ms", "P99", "failed")  # fmt: skip


def main() -> None:
    """Run the pairs and print their table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--seconds", type=float, default=30.0)
    parser.add_argument("--rate", type=float, default=20.0, help="requests/s")
    parser.add_argument("--set", action="append", default=[], help="a setting of Chameleon's")
    parser.add_argument("--out", type=Path, default=Path("runs/adapters"))
    args = parser.parse_args()
    served = served_model(LAYERS, ADAPTERS, SHAPE)
    rows = []
    for pair, arm in in_turn(args.pairs):
        rows.append((str(pair), arm, *measure(arm, pair, served, args)))
        print(rows[-1], file=sys.stderr, flush=True)
    print(markdown_table(Table(HEAD, tuple(rows)), ()))


def measure(arm: str, pair: int, served: ServedModel, args: argparse.Namespace) -> tuple[str, ...]:
    """One server under the traffic of one pair."""
    folder = args.out / f"{pair}-{arm}"
    with running_server(server(arm, served, folder, recording_steps(folder), args.set)) as url:
        spec = WorkloadSpec(args.rate, args.seconds, 1.0, LENGTHS)
        target = Target(url, BASE_MODEL, TOKEN_IDS)
        summary = summarise(
            asyncio.run(replay(target, make_workload(spec, served.adapters, 5 + pair)))
        )
    events = read_step_log(folder / STEPS).events
    waits_s, sources = (stock_waits if arm == STOCK else our_waits)(events)
    warm_s = [wait for wait, source in zip(waits_s, sources, strict=True) if source != "disk"]
    assert summary.ttft is not None
    counts = Counter(sources)
    return (
        str(len(waits_s)),
        *(f"{counts[source] / len(sources):.2f}" for source in ("device", "host", "disk")),
        *(f"{1e3 * percentile(waits_s, p):.2f}" for p in (50, 99)),
        *(f"{1e3 * percentile(warm_s, p):.2f}" for p in (50, 99)),
        f"{1e3 * summary.ttft.p50_s:.0f}",
        f"{1e3 * summary.ttft.p99_s:.0f}",
        str(summary.failed),
    )


def stock_waits(lines: Iterable[dict[str, Any]]) -> tuple[list[float], list[str]]:
    """For each activation inside a step: it, and the load before it, if there was one."""
    waits_s: list[float] = []
    sources: list[str] = []
    loads_s: dict[int, float] = {}
    for line in lines:
        if not line["in_step"]:
            continue
        if line["event"] == "disk_load":
            loads_s[line["adapter_id"]] = line["seconds"]
        else:
            load_s = loads_s.pop(line["adapter_id"], None)
            waits_s.append(line["seconds"] + (load_s or 0.0))
            sources.append("host" if load_s is None else "disk")
    return waits_s, sources


def our_waits(lines: Iterable[dict[str, Any]]) -> tuple[list[float], list[str]]:
    """As the driver recorded them."""
    found = [line for line in lines if line["event"] == "adapter_wait"]
    return [line["seconds"] for line in found], [line["source"] for line in found]


if __name__ == "__main__":
    main()
