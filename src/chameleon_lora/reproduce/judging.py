"""From figures to words and verdicts."""

from collections.abc import Sequence

from chameleon_lora.report.table import Table
from chameleon_lora.reproduce.finding import Verdict
from chameleon_lora.sim.figures import SimFigures

NOISE = 0.02  # of a ratio, that a run's own chance can account for


def change(base: float, other: float) -> float:
    """`other` against `base` as a share: -0.8 is 80 % less."""
    return other / base - 1.0 if base else 0.0


def signed_percent(share: float) -> str:
    """A share with its sign, in per cent."""
    return f"{100 * share:+.1f} %"


def signed_percents(shares: Sequence[float]) -> str:
    """Several of them, as the paper writes them: -14.7 / -24.6 / -80.7 %."""
    return " / ".join(f"{100 * share:+.1f}" for share in shares) + " %"


def change_range(base: Sequence[float], other: Sequence[float]) -> str:
    """The least and the greatest change, pair by pair of seeds; empty for one seed."""
    changes = [change(b, o) for b, o in zip(base, other, strict=True)]
    if len(changes) < 2:
        return ""
    return f" ({100 * min(changes):+.1f} to {100 * max(changes):+.1f} by seed)"


def fall_verdict(claimed: Sequence[float], found: Sequence[float]) -> Verdict:
    """For claims of so much less: all at least as deep, all in that direction, or neither."""
    if all(ours <= paper + NOISE for paper, ours in zip(claimed, found, strict=True)):
        return Verdict.HOLDS
    return Verdict.PARTLY if all(ours < -NOISE for ours in found) else Verdict.FAILS


def gain_verdict(claimed: Sequence[float], found: Sequence[float]) -> Verdict:
    """For claims of so many times as much."""
    if all(ours >= paper - NOISE for paper, ours in zip(claimed, found, strict=True)):
        return Verdict.HOLDS
    return Verdict.PARTLY if all(ours > 1.0 + NOISE for ours in found) else Verdict.FAILS


def whole_ms(seconds: float) -> str:
    """Whole milliseconds with thousands separators, without the unit."""
    return f"{1000 * seconds:,.0f}"


LATENCY_HEAD = (
    "arm",
    "load, 1/s",
    "P50 TTFT, ms",
    "P99 TTFT, ms",
    "P99 TPOT, ms",
    "hits",
    "queueing",
)


def latency_row(label: str, rate_per_s: float, run: SimFigures) -> tuple[str, ...]:
    """One run under `LATENCY_HEAD`."""
    return (
        label,
        f"{rate_per_s:g}",
        whole_ms(run.ttft.p50_s),
        whole_ms(run.ttft.p99_s),
        whole_ms(run.per_token.p99_s if run.per_token else 0.0),
        f"{run.hit_share:.2f}",
        f"{100 * run.queue_share:.1f} %",
    )


def latency_table(runs: Sequence[tuple[str, float, SimFigures]]) -> Table:
    """One row a run of (label, requests/s, figures), in the order given."""
    return Table(LATENCY_HEAD, tuple(latency_row(*run) for run in runs))
