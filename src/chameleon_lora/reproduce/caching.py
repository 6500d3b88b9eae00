"""What the adapter cache is worth: loads on the way, eviction, prefetch, many adapters."""

from chameleon_lora.policy.eviction import KeepRule
from chameleon_lora.reproduce import arms
from chameleon_lora.reproduce.finding import Curve, Effort, Finding, Plot, Table, Verdict
from chameleon_lora.reproduce.judging import (
    NOISE,
    change,
    fall_verdict,
    latency_table,
    ms,
    percent,
    percents,
)
from chameleon_lora.reproduce.testbed import SLO_S, a40

COUNTS = (10, 50, 100, 150, 200)
RULES = (
    KeepRule.LRU, KeepRule.FAIR_SHARE, KeepRule.CHAMELEON, KeepRule.GDSF, KeepRule.DENSITY,
    KeepRule.BELADY,
)  # fmt: skip


def critical_path(effort: Effort) -> Finding:
    """How many requests find their adapter in device memory, and what the others wait for it."""
    testbed, rows = a40(), []
    runs = [
        (arm, testbed.figures(arm, 8.0, effort))
        for arm in (arms.SLORA, arms.EACH_STEP, arms.CHAMELEON)
    ]
    for arm, run in runs:
        load = run.load
        rows.append(
            (
                arm.label,
                f"{100 * run.hit_share:.1f} %",
                f"{1000 * load.mean_s:.1f}" if load else "0",
                f"{1000 * load.max_s:.1f}" if load else "0",
                f"{100 * run.link_share:.1f} %",
            )
        )
    mine = runs[-1][1]
    mean_s = mine.load.mean_s if mine.load else 0.0
    is_held = mine.hit_share >= 0.75 and mean_s * (1 - mine.hit_share) <= 0.006
    table = Table(
        ("arm", "hits", "mean wait of misses, ms", "longest, ms", "link in use"), tuple(rows)
    )
    note = (
        "The 100 adapters weigh 10 GB and fit into the A40's idle memory, so almost every miss is an "
        "adapter's first use; the paper's 75 % must come from less idle memory than its own figures "
        "leave. A miss waits for the whole copy: 3 to 25 ms by rank."
    )
    ours = f"{100 * mine.hit_share:.0f} % hits; misses {1000 * mean_s:.0f} ms on average"
    return Finding(ours, Verdict.HOLDS if is_held else Verdict.PARTLY, note, (table,))


def eviction(effort: Effort) -> Finding:
    """P99 TTFT by rule of eviction, at 8 requests/s, against S-LoRA: 100 adapters, and 500."""
    tables, falls = [], []
    for testbed in (a40(), a40(500)):
        base = testbed.figures(arms.SLORA, 8.0, effort)
        runs = [
            (rule.value, 8.0, testbed.figures(arms.kept_by(rule), 8.0, effort)) for rule in RULES
        ]
        tables.append(latency_table([(arms.SLORA.label, 8.0, base), *runs]))
        falls.append([change(base.ttft.p99_s, run.ttft.p99_s) for _, _, run in runs])
    lru, fair, paper = falls[1][:3]
    is_ordered = paper <= fair + NOISE and fair <= lru + NOISE
    verdict = fall_verdict((-0.18, -0.22, -0.26), falls[0][:3])
    note = (
        "With 100 adapters no rule matters, for all of them fit into idle memory (first table). With "
        "500 they do not (second table), and the rules differ in hits more than in P99 TTFT; `density` "
        "is ours (uses per byte), `belady` knows the future."
    )
    ours = f"{percents(falls[0][:3])}; with 500 adapters {percents(falls[1][:3])}"
    holds = verdict if is_ordered or verdict is not Verdict.HOLDS else Verdict.PARTLY
    return Finding(ours, holds, note, tuple(tables))


def prefetch(effort: Effort) -> Finding:
    """What predicting adapters from their inter-arrival times adds: 100 adapters, and 500."""
    runs, falls = [], []
    for count, load in ((100, 8.0), (500, 8.0)):
        testbed = a40(count)
        for arm in (arms.CHAMELEON, arms.PREFETCHING):
            label = f"{arm.label}, {count} adapters"
            runs.append((label, load, testbed.figures(arm, load, effort)))
        falls.append(change(runs[-2][2].ttft.p99_s, runs[-1][2].ttft.p99_s))
    best = min(falls)
    note = (
        "Arrivals are Poisson, as in the paper: the time since an adapter's last request says nothing of "
        "the next, so a histogram cannot foretell much more than its rate. On traffic with a period it "
        "does (`bench/forecast.py`)."
    )
    return Finding(
        " and ".join(percent(fall) for fall in falls) + " (100, 500 adapters)",
        fall_verdict((-0.088,), (best,)),
        note,
        (latency_table(runs),),
    )


def adapter_counts(effort: Effort) -> Finding:
    """P99 TTFT by the number of adapters, at 9.5 requests/s: where the objective is held."""
    rows, curves, held = [], [], {}
    for name, rank_alpha in (("ranks alike", 0.0), ("one power law", None)):
        for arm in (arms.SLORA, arms.CHAMELEON):
            p99s = []
            for count in COUNTS:
                run = a40(count, rank_alpha=rank_alpha).figures(arm, 9.5, effort)
                p99s.append(run.ttft.p99_s)
            rows.append((f"{arm.label}, {name}", *(ms(p99_s) for p99_s in p99s)))
            curves.append(Curve(rows[-1][0], tuple(map(float, COUNTS)), tuple(p99s)))
            within = [count for count, p99_s in zip(COUNTS, p99s, strict=True) if p99_s <= SLO_S]
            held[rows[-1][0]] = max(within, default=0)
    plot = Plot(
        "P99 time to first token by number of adapters, 9.5 requests/s", "adapters", "seconds",
        tuple(curves), has_log_y=True, limit=SLO_S,
    )  # fmt: skip
    table = Table(("P99 TTFT, ms, adapters:", *map(str, COUNTS)), tuple(rows))
    ours = "; ".join(f"{label}: held to {count}" for label, count in held.items())
    chameleon = [held["Chameleon, ranks alike"], held["Chameleon, one power law"]]
    is_met = chameleon[0] >= 100 and chameleon[1] >= 150
    verdict = Verdict.HOLDS if is_met else Verdict.PARTLY if min(chameleon) > 10 else Verdict.FAILS
    return Finding(ours, verdict, "", (table,), (plot,))
