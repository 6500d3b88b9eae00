"""The run's report in Markdown."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from chameleon_lora.report.table import NUMBERS, Table, markdown_table
from experiments.gpu.outcome import Outcome, Status

Row = tuple[str, str]


def markdown(
    outcomes: Mapping[str, Outcome], names: Sequence[str], command: str, *, is_dry: bool = False
) -> str:
    """How each stage ended, then the figures."""
    title = "# Chameleon on a GPU" + (": a dry run, whose figures mean nothing" if is_dry else "")
    found = [outcomes.get(name) or Outcome(name, Status.LEFT, "not begun") for name in names]
    ended = [(one.stage, one.status.value, f"{one.seconds:.0f}", one.reason) for one in found]
    stages = markdown_table(
        Table(("stage", "ended", "s", "why"), tuple(ended)), ("", "", NUMBERS, "")
    )
    figures = markdown_table(Table(("figure", "value"), tuple(rows(outcomes))), ("", NUMBERS))
    return f"{title}\n\n`{command}`\n\n{stages}\n\n{figures}\n"


def rows(outcomes: Mapping[str, Outcome]) -> Iterator[Row]:
    """All figures that there are, of failed stages too."""
    figures = {name: outcome.figures for name, outcome in outcomes.items() if outcome.figures}
    if "machine" in figures:
        yield from _machine(figures["machine"])
    for name in figures:
        if name.startswith("proof-"):
            yield from _proof(name, figures[name])
    yield from _activation(figures.get("activation", {}))
    yield from _engines(figures.get("engines", {}))
    yield from _comparison(figures.get("compare", {}))
    yield from _profile(figures.get("profile", {}))


def _machine(found: Mapping[str, Any]) -> Iterator[Row]:
    gpu = found.get("gpu")
    yield "GPU", gpu["name"] if gpu else f"none; {found['machine']}"
    versions = found.get("versions", {})
    yield "versions", ", ".join(f"{name} {version}" for name, version in versions.items())


def _proof(name: str, found: Mapping[str, Any]) -> Iterator[Row]:
    if "runner" in found:
        yield f"{name}: runner, CUDA graphs", f"{found['runner']}, {found['cuda_graphs']}"
    for kind in ("batch 1", "fixed batch"):
        if kind in found:
            ours, stock = found[kind]["with stock"], found[kind]["stock with itself"]
            yield (
                f"{name}: {kind}, answers equal to stock's",
                f"{ours['equal']} of {ours['answers']} "
                f"(stock's to its own: {stock['equal']} of {stock['answers']})",
            )
    if "swaps" in found:
        yield f"{name}: swapped adapters noticed", f"{found['swaps_seen']} of {found['swaps']}"
        wrong = found["wrong_adapters"] + found.get("wrong_adapters_in_storm", 0)
        yield f"{name}: answers of another adapter", str(wrong)
    if "checks" in found:
        evictions = sum(found["demotions"].values())
        yield (
            f"{name}: activations compared byte by byte",
            f"{found['checks']} ({evictions} evictions, {found['preemptions']} preemptions)",
        )


def _activation(found: Mapping[str, Any]) -> Iterator[Row]:
    rank = found.get("rank")
    timed = {**found.get("activations", {}), **found.get("cold", {})}
    for name, times in timed.items():
        yield (
            f"activation, rank {rank}, {name}",
            f"call {times['call_ms']:.3f} ms, device {times['device_ms']:.3f} ms",
        )


def _engines(found: Mapping[str, Any]) -> Iterator[Row]:
    for name, share in found.get("chameleon_over_stock", {}).items():
        yield f"tokens/s over stock's, {name.replace('_', ' ')}", f"{share:.3f}"
    if "chameleon" in found:
        held = found["chameleon"]
        yield (
            "adapters a GB: in KV blocks, in slots",
            f"{held['held_a_gb']:.1f}, {held['slots_a_gb']:.1f} ({held['held_adapters']} held)",
        )


def _comparison(found: Mapping[str, Any]) -> Iterator[Row]:
    if found.get("capacity_per_s"):
        yield (
            "stock's capacity, objective",
            f"{found['capacity_per_s']:.2f} requests/s, {1e3 * found['slo_ttft_s']:.0f} ms",
        )
    for ratio in found.get("ratios", ()):
        if ratio["figure"] in ("ttft_p50", "ttft_p99", "itl_p99", "output_throughput"):
            yield (
                f"compare: {ratio['label']}, {ratio['figure']} at {ratio['point']:g}",
                f"{ratio['ratio']:.2f} of stock's [{ratio['low']:.2f}, {ratio['high']:.2f}]",
            )
    if late := found.get("late_runs"):
        yield "compare: runs whose client fell behind", f"{len(late)}; do not quote them"


def _profile(found: Mapping[str, Any]) -> Iterator[Row]:
    if not found:
        return
    yield "scheduler's decision, each step", f"{found['schedule_ms_a_step']:.2f} ms"
    for place in ("cuda", "cpu"):
        for one in found[f"by_{place}"][:3]:
            if one["ms"]:
                yield (
                    f"{place} time: {one['name'][:44]}",
                    f"{one['ms']:.1f} ms, {one['count']} calls",
                )
