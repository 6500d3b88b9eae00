"""How many times faster than real time is the simulator? Run: `.venv/bin/python -m experiments.sim_speed`.

Two loads on one core: 10 requests/s of 100 adapters, and 200 requests/s of 10,000 adapters. Poisson,
power-law popularity, lengths of the Azure conversation trace, halved. No GPU serves the second load, so
its machine is 16 of them in one: each computes, copies and stores 16 times as much in the same time.
The times to first token show that neither is overloaded. Drawing the requests is not timed; making the
engine and registering its adapters are.

Options: --profile, --preset, --seconds (simulated, of each load), --seed, --cpu, --load (only that one),
--top (the functions that take most time, by cProfile, which slows the run down).
"""

import argparse
import cProfile
import pstats
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from time import perf_counter, process_time  # noqa: TID251

from chameleon_lora.policy.settings import Preset, preset
from chameleon_lora.sim.figures import figures
from chameleon_lora.sim.outcome import SimOutcome
from chameleon_lora.sim.profile import Link, StepCosts, read_profile
from chameleon_lora.sim.run import simulate
from chameleon_lora.sim.setup import S_LORA, EngineStyle, Setup, foretell_truth
from chameleon_lora.workload.lengths import LengthScale
from chameleon_lora.workload.named_adapters import named_adapters
from chameleon_lora.workload.requests import TimedRequest, WorkloadSpec, make_workload


@dataclass(frozen=True, slots=True)
class Load:
    """Requests a second, of so many adapters, on a machine so many times as large.

    Attributes:
        aim: simulated seconds in a second of the wall clock.
    """

    rate_per_s: float
    adapters: int
    machines: int
    slots: int
    aim: float


LOADS = (Load(10.0, 100, 1, 32, 1000.0), Load(200.0, 10_000, 16, 64, 50.0))
HALF = LengthScale(factor=0.5)


def main() -> None:
    """Run each load, print a line for it."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--profile", default="llama-3.1-8b-h200")
    parser.add_argument("--preset", type=Preset, default=Preset.CHAMELEON)
    parser.add_argument("--seconds", type=float, default=300.0)
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--cpu", action="store_true", help="CPU time, without what others took")
    parser.add_argument("--load", type=int, choices=range(len(LOADS)))
    parser.add_argument("--top", type=int, default=0, help="how many functions to list")
    given = parser.parse_args()
    clock_s = process_time if given.cpu else perf_counter
    print(
        f"{given.profile}, {given.preset.value}, {given.seconds:g} s simulated, seed {given.seed}"
    )
    print("requests/s  adapters    steps  P50 TTFT  P99 TTFT  KV used  took  times as fast   aim")
    for number, load in enumerate(LOADS):
        if given.load in (None, number):
            setup = make_setup(given.profile, given.preset, load)
            spec = WorkloadSpec(load.rate_per_s, given.seconds, lengths=HALF)
            requests = make_workload(spec, setup.adapters, given.seed)
            report(load, *timed(setup, requests, clock_s, given.top))


def make_setup(profile: str, name: Preset, load: Load) -> Setup:
    """An engine for the load; S-LoRA has its own, the others have slots of rank 128."""
    times, machine = load.machines, read_profile(profile)
    costs = {key: value / times for key, value in asdict(machine.step).items()}
    machine = replace(
        machine,
        memory=replace(machine.memory, pool_bytes=times * machine.memory.pool_bytes),
        step=StepCosts(**costs),
        host_link=Link(times * machine.host_link.bytes_per_s, machine.host_link.latency_s / times),
    )
    style = EngineStyle(seats=256 * times, batch_tokens=8192 * times, slots=load.slots)
    if name is Preset.SLORA:
        style = replace(S_LORA, seats=1000 * times)
    return Setup(machine, style, preset(name), named_adapters(load.adapters), foretell_truth)


def timed(
    setup: Setup, requests: tuple[TimedRequest, ...], clock_s: Callable[[], float], top: int
) -> tuple[SimOutcome, float]:
    """The run, and how long it took."""
    profiler = cProfile.Profile() if top else None
    begin_s = clock_s()
    if profiler:
        profiler.enable()
    outcome = simulate(setup, requests)
    took_s = clock_s() - begin_s
    if profiler:
        profiler.disable()
        pstats.Stats(profiler).sort_stats("tottime").print_stats(top)
    return outcome, took_s


def report(load: Load, outcome: SimOutcome, took_s: float) -> None:
    """One line of the table."""
    found = figures(outcome)
    print(
        f"{load.rate_per_s:10g} {load.adapters:9,} {outcome.steps:8,} {found.ttft.p50_s:8.3f}s"
        f" {found.ttft.p99_s:8.3f}s {found.used_share:7.1%} {took_s:5.1f}s"
        f" {outcome.duration_s / took_s:12,.0f}x {load.aim:5,.0f}"
    )


if __name__ == "__main__":
    main()
