"""Live vLLM servers on CPU against their simulation, on the same requests.

    .venv/bin/chameleon calibrate --model tiny --scheduler vllm --out runs/vllm.toml
    .venv/bin/chameleon calibrate --model tiny --scheduler chameleon --out runs/chameleon.toml
    .venv/bin/python -m experiments.fidelity --vllm runs/vllm.toml --chameleon runs/chameleon.toml

Two schedulers, three loads, in shares of what stock vLLM completes here when all its seats are always
taken. Each server gets the three loads one after the other, and so does each simulation, which knows
nothing of the live runs but the requests. Live figures are medians of the runs.

A machine that others use is not always equally fast, and waiting times grow faster than steps do. So
the last column gives the error of simulations whose steps are scaled to the speed of that run: the
steps' measured time over what the profile says they take. It is the error of the model alone.

Chameleon's server uses adapters where they lie if its profile is of such an engine (`in_host`).

`--again` simulates anew beside the live runs that `--out` holds.
"""

import argparse
import asyncio
import itertools
import json
import statistics
import sys
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Any

from chameleon_lora.adapters.inspect import inspect_adapter
from chameleon_lora.bench.client import Answer, stream_completion
from chameleon_lora.bench.replay import Target, completion_of, open_session, replay
from chameleon_lora.engine_vllm.measure.step_log import add_stock_copies, read_step_log
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.metrics.summary import percentile
from chameleon_lora.policy.settings import PolicySettings, Preset, preset
from chameleon_lora.report.table import NUMBERS, Table, markdown_table
from chameleon_lora.servers.launching import BASE_MODEL, EngineShape, ServedModel
from chameleon_lora.servers.process import running_server
from chameleon_lora.servers.tiny_model import TARGET_MODULES
from chameleon_lora.settings import LoraBackend
from chameleon_lora.sim.outcome import SimRecord
from chameleon_lora.sim.profile import Profile, StepCosts, read_profile
from chameleon_lora.sim.run import simulate
from chameleon_lora.sim.setup import EngineStyle, Setup
from chameleon_lora.workload.named_adapters import NamedAdapter
from chameleon_lora.workload.requests import TimedRequest, WorkloadSpec, make_workload
from experiments.two_servers import (
    CHAMELEON,
    LENGTHS,
    STEPS,
    STOCK,
    TOKEN_IDS,
    in_turn,
    recording_steps,
    served_model,
    server,
)

ADAPTERS, LAYERS = 24, 16
SHAPE = EngineShape(seats=16, target_modules=TARGET_MODULES)
APART_S = 200.0  # between the beginnings of two loads, in simulated time
WARM_UP, SEED = 8, 5
CAPACITY_S = 20.0


@dataclass(frozen=True, slots=True)
class Figures:
    """What is compared of one run at one load."""

    ttft_mean_s: float
    ttft_p99_s: float
    tokens_per_s: float


def main() -> None:
    """Measure, simulate, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--vllm", required=True, metavar="PROFILE")
    parser.add_argument("--chameleon", required=True, metavar="PROFILE")
    parser.add_argument("--loads", type=float, nargs="+", default=[0.5, 0.7, 0.9])
    parser.add_argument("--capacity", type=float, help="requests/s (default: measured)")
    parser.add_argument("--seconds", type=float, default=40.0, help="of each load")
    parser.add_argument("--runs", type=int, default=3)
    parser.add_argument("--again", action="store_true", help="simulate only")
    parser.add_argument("--out", type=Path, default=Path("runs/fidelity"))
    args = parser.parse_args()
    served = served_model(LAYERS, ADAPTERS, SHAPE)
    profiles = {STOCK: read_profile(args.vllm), CHAMELEON: read_profile(args.chameleon)}
    live_path, plan_path = args.out / "live.json", args.out / "plan.json"
    if not args.again:
        args.out.mkdir(parents=True, exist_ok=True)
        per_s = args.capacity or capacity(served, args.out)
        plan = {"capacity": per_s, "loads": args.loads, "seconds": args.seconds}
        plan_path.write_text(json.dumps(plan) + "\n", encoding="utf-8")
        live_path.write_text(
            json.dumps(live_runs(served, profiles, plan, args)) + "\n", encoding="utf-8"
        )
    plan = json.loads(plan_path.read_text(encoding="utf-8"))
    live = json.loads(live_path.read_text(encoding="utf-8"))
    loads = workloads(served, plan)
    sim = {arm: simulated(arm, profile, served, loads) for arm, profile in profiles.items()}
    for row in live:
        profile = profiles[row["arm"]]
        row["speed"] = speed(profile, served, args.out / f"{row['run']}-{row['arm']}", row)
        scaled = simulated(row["arm"], slowed(profile, row["speed"]), served, loads)
        row["at_speed"] = asdict(scaled[row["load"]])
    print(f"capacity of stock vLLM: {plan['capacity']:.2f} requests/s; "
          f"{', '.join(str(len(load)) for load in loads)} requests\n")  # fmt: skip
    print(table(plan["loads"], live, sim))


def workloads(served: ServedModel, plan: dict[str, Any]) -> list[tuple[TimedRequest, ...]]:
    """The requests of each load; an index is used once, so that no prompt comes twice."""
    names, loads, count = served.adapters, [], 0
    for share in plan["loads"]:
        spec = WorkloadSpec(share * plan["capacity"], plan["seconds"], 1.0, LENGTHS)
        requests = make_workload(spec, names, SEED)
        loads.append(tuple(replace(r, index=count + r.index) for r in requests))
        count += len(requests)
    return loads


def capacity(served: ServedModel, out: Path) -> float:
    """Requests/s of stock vLLM with as many clients as seats, each of which waits for its answer.

    Requests that are all there at once would let it run those of one adapter together, which it
    cannot when they arrive one by one.
    """
    names = served.adapters
    requests = make_workload(WorkloadSpec(50.0, 10.0, 1.0, LENGTHS), names, 999)
    folder = out / "capacity"
    with running_server(server(STOCK, served, folder, recording_steps(folder))) as url:
        target = Target(url, BASE_MODEL, TOKEN_IDS)
        warm_up(target)
        return asyncio.run(closed_loop(target, requests, SHAPE.seats))


async def closed_loop(target: Target, requests: Sequence[TimedRequest], clients: int) -> float:
    """Requests/s in CAPACITY_S seconds."""
    waiting, clock = iter(requests), asyncio.get_running_loop().time
    done, end_s = 0, clock() + CAPACITY_S
    async with open_session() as session:

        async def client() -> None:
            nonlocal done
            for request in waiting:
                answer = Answer()
                completion = completion_of(request, target)
                await stream_completion(session, target.base_url, completion, answer, clock)
                assert answer.error is None, answer.error
                if clock() > end_s:
                    return
                done += 1

        await asyncio.gather(*(client() for _ in range(clients)))
    return done / CAPACITY_S


def warm_up(target: Target) -> None:
    """A few requests to the base model: a process's first steps are slow. Touches no adapter."""
    for index in range(WARM_UP):
        asyncio.run(replay(target, [TimedRequest(1_000_000 + index, 0.0, None, 16 * index + 4, 4)]))


def live_runs(
    served: ServedModel,
    profiles: dict[str, Profile],
    plan: dict[str, Any],
    args: argparse.Namespace,
) -> list[dict[str, Any]]:
    """Figures by run, arm and load; Chameleon's engine is of the kind that its profile is of."""
    found: list[dict[str, Any]] = []
    kind = LoraBackend.PAGED if profiles[CHAMELEON].in_host else LoraBackend.SLOTS
    backend = (f"serving.lora_backend={kind.value}",)
    for run, arm in in_turn(args.runs):
        folder = args.out / f"{run}-{arm}"
        spec = server(arm, served, folder, recording_steps(folder), backend)
        with running_server(spec) as url:
            target = Target(url, BASE_MODEL, TOKEN_IDS)
            warm_up(target)
            for load, requests in enumerate(workloads(served, plan)):
                figures = live_load(target, requests, folder / f"records-{load}.json")
                found.append({"run": run, "arm": arm, "load": load, **figures})
                print(found[-1], file=sys.stderr, flush=True)
    return found


def live_load(target: Target, requests: Sequence[TimedRequest], path: Path) -> dict[str, float]:
    """Figures of one replay and when it was, by the steps' clock; its records go to `path`."""
    begin_s = time.time()  # noqa: TID251  # the steps' clock
    records = asyncio.run(replay(target, requests))
    end_s = time.time()  # noqa: TID251
    path.write_text(json.dumps([asdict(r) for r in records]), encoding="utf-8")
    client_late_s = max(record.lateness_s for record in records)
    times_s = {"begin_s": begin_s, "end_s": end_s, "client_late_s": client_late_s}
    return {**asdict(live_figures(records)), **times_s}


def live_figures(records: Sequence[RequestRecord]) -> Figures:
    """Of a replay in which no request failed."""
    errors = [record.error for record in records if record.error]
    assert not errors, errors[0]
    ttfts_s = [record.ttft_s for record in records if record.ttft_s is not None]
    tokens = sum(record.output_tokens for record in records)
    return Figures(
        statistics.mean(ttfts_s),
        percentile(ttfts_s, 99.0),
        tokens / max(record.end_s for record in records),
    )


def simulated(
    arm: str, profile: Profile, served: ServedModel, loads: Sequence[Sequence[TimedRequest]]
) -> list[Figures]:
    """Figures by load."""
    is_stock = arm == STOCK
    names = served.adapters
    style = EngineStyle(
        seats=SHAPE.seats,
        batch_tokens=SHAPE.batch_tokens,
        slots=SHAPE.slots,
        max_rank=SHAPE.max_rank,
        pads_ranks=True,  # as vLLM's kernels do
        is_preloaded=is_stock,  # registered when the server starts
    )
    if profile.in_host:
        style = style.without_slots()
    moved = [
        replace(request, arrival_s=request.arrival_s + APART_S * number)
        for number, load in enumerate(loads)
        for request in load
    ]
    outcome = simulate(
        Setup(
            profile=profile,
            style=style,
            policy=preset(Preset.VLLM) if is_stock else PolicySettings(),
            adapters=[
                NamedAdapter(n, inspect_adapter(served.adapters_dir / n).rank) for n in names
            ],
        ),
        moved,
    )
    by_index = {record.index: record for record in outcome.records}
    return [
        sim_figures([by_index[request.index] for request in load], APART_S * number)
        for number, load in enumerate(loads)
    ]


def speed(profile: Profile, served: ServedModel, folder: Path, row: dict[str, Any]) -> float:
    """Measured over expected time of the steps of one run at one load; above 1 is slow."""
    log = read_step_log(folder / STEPS)
    if row["arm"] == STOCK:
        nbytes = {str(path): 0 for path in served.adapters_dir.iterdir()}
        add_stock_copies(log, nbytes.__getitem__)
    measured_s = expected_s = 0.0
    for step, copies_s in zip(log.steps, log.copies_s, strict=True):
        if row["begin_s"] <= step.begin_s <= row["end_s"]:
            measured_s += step.seconds - copies_s
            expected_s += profile.step.step_s(step.work)
    return measured_s / expected_s


def slowed(profile: Profile, factor: float) -> Profile:
    """The profile with steps that take so many times as long."""
    costs = {f.name: factor * getattr(profile.step, f.name) for f in fields(StepCosts)}
    return replace(profile, step=StepCosts(**costs))


def sim_figures(records: Sequence[SimRecord], start_s: float) -> Figures:
    """Of one load that began at `start_s`."""
    ttfts_s = [record.ttft_s for record in records if record.ttft_s is not None]
    ends_s = [record.end_s for record in records if record.end_s is not None]
    assert len(ttfts_s) == len(ends_s) == len(records), "a simulated request did not end"
    tokens = sum(record.request.output_tokens for record in records)
    return Figures(
        statistics.mean(ttfts_s), percentile(ttfts_s, 99.0), tokens / (max(ends_s) - start_s)
    )


def table(
    shares: Sequence[float], live: Sequence[dict[str, Any]], sim: dict[str, list[Figures]]
) -> str:
    """In Markdown."""
    head = ("scheduler", "load", "speed", "figure", "live: median (least, most)", "simulated",
            "error", "at the run's speed")  # fmt: skip
    kinds = ("", NUMBERS, NUMBERS, "", *[NUMBERS] * 4)
    lines = []
    shown = (("ttft_mean_s", "mean TTFT, ms", 1e3), ("ttft_p99_s", "P99 TTFT, ms", 1e3),
             ("tokens_per_s", "output tokens/s", 1.0))  # fmt: skip
    for arm, (load, share) in itertools.product(sim, enumerate(shares)):
        rows = [row for row in live if row["arm"] == arm and row["load"] == load]
        speeds = " ".join(f"{row['speed']:.2f}" for row in rows)
        for key, name, factor in shown:
            values = sorted(factor * row[key] for row in rows)
            middle = statistics.median(values)
            ours = factor * getattr(sim[arm][load], key)
            own = statistics.median(row["at_speed"][key] / row[key] - 1.0 for row in rows)
            seen = f"{middle:.0f} ({values[0]:.0f}, {values[-1]:.0f})"
            errors = f"{ours / middle - 1:+.1%}", f"{own:+.1%}"
            lines.append((arm, f"{share:.0%}", speeds, name, seen, f"{ours:.0f}", *errors))
    return markdown_table(Table(head, tuple(lines)), kinds)


if __name__ == "__main__":
    main()
