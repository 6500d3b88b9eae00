"""Which keep rule has the lowest P99 TTFT? Run: `.venv/bin/python -m experiments.keep_rules`.

The simulator with vLLM's engine (chunked prefill, 32 slots padded to rank 128, adapters in idle KV
blocks) and our default policy, but for `cache.keep`. More adapters than idle memory holds, so that
the rule matters. Each seed is another draw of the same workload; rules are compared seed by seed.

Prints, per load and rule: hits, P50 and P99 TTFT (medians over seeds), and the median and range of
P99 over the paper's rule. Same options, same table.
"""

import argparse
import statistics
from dataclasses import replace

from chameleon_lora.policy.settings import KeepRule, PolicySettings
from chameleon_lora.reproduce.arms import on_vllm
from chameleon_lora.reproduce.finding import Effort
from chameleon_lora.reproduce.testbed import a40
from chameleon_lora.sim.figures import SimFigures


def run(rule: KeepRule, load: float, adapters: int, effort: Effort) -> SimFigures:
    """One run of our default policy with this rule."""
    policy = PolicySettings()
    policy = replace(policy, cache=replace(policy.cache, keep=rule))
    return a40(adapters).figures(on_vllm(policy, rule.value, 32), load, effort)


def main() -> None:
    """Run every rule on every seed, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--adapters", type=int, default=500)
    parser.add_argument("--loads", type=float, nargs="+", default=[6.0, 9.0])
    parser.add_argument("--seconds", type=float, default=360.0)
    parser.add_argument("--seeds", type=int, nargs="+", default=[1, 2, 3, 4, 5])
    given = parser.parse_args()
    print(f"{given.adapters} adapters, {given.seconds:g} s, seeds {given.seeds}\n")
    print("| load, 1/s | rule | hits | P50, ms | P99, ms | P99 over the paper's rule |")
    print("| ---: | --- | ---: | ---: | ---: | ---: |")
    for load in given.loads:
        base: list[float] = []
        for rule in (KeepRule.CHAMELEON, KeepRule.LRU, KeepRule.DENSITY, KeepRule.BELADY):
            runs = [
                run(rule, load, given.adapters, Effort(given.seconds, (seed,)))
                for seed in given.seeds
            ]
            p99s = [figures.ttft.p99_s for figures in runs]
            base = base or p99s
            ratios = [p99 / paper for p99, paper in zip(p99s, base, strict=True)]
            print(
                f"| {load:g} | {rule.value} | {statistics.median(f.hit_share for f in runs):.3f} "
                f"| {1000 * statistics.median(f.ttft.p50_s for f in runs):.0f} "
                f"| {1000 * statistics.median(p99s):.0f} | {statistics.median(ratios):.3f} "
                f"({min(ratios):.3f}-{max(ratios):.3f}) |",
                flush=True,
            )


if __name__ == "__main__":
    main()
