"""What the scheduler does: queueing by size, gaps between tokens, lanes, predicted lengths."""

from chameleon_lora.report.table import Table
from chameleon_lora.reproduce import arms
from chameleon_lora.reproduce.finding import Effort, Finding, Verdict
from chameleon_lora.reproduce.judging import (
    NOISE,
    change,
    change_range,
    fall_verdict,
    latency_table,
    signed_percent,
    whole_ms,
)
from chameleon_lora.reproduce.testbed import WARM_UP_S, a40
from chameleon_lora.sim.figures import queue_share
from chameleon_lora.sim.outcome import SimRecord

CLASSES = ("small", "medium", "large")
HIGH_LOAD_PER_S = 12.0
TBT_LOADS_PER_S = (6.0, 8.0)
TBT_SLO_S = 0.150


def queueing(effort: Effort) -> Finding:
    """Share of a request's time spent queued, by thirds of its tokens, at 8 requests/s."""
    rows, shares = [], {}
    for arm in (arms.SLORA, arms.EACH_STEP, arms.SJF, arms.CHUNKED, arms.CHAMELEON):
        outcome = a40().outcome(arm, 8.0, effort)
        ended = [r for r in outcome.records if r.arrival_s >= WARM_UP_S and r.end_s is not None]
        ended.sort(key=lambda record: (_tokens(record), record.index))
        third = len(ended) // 3
        parts = (ended[:third], ended[third : 2 * third], ended[2 * third :])
        shares[arm.label] = [queue_share(part) for part in parts]
        waits = [sum((r.admitted_s or 0.0) - r.arrival_s for r in p) / len(p) for p in parts]
        rows.append(
            (
                arm.label,
                *(f"{100 * share:.1f} %" for share in shares[arm.label]),
                *(whole_ms(wait_s) for wait_s in waits),
            )
        )
    head = ("arm", *(f"queued, {name}" for name in CLASSES), *(f"wait, {n}, ms" for n in CLASSES))
    mine, fifo = shares[arms.CHAMELEON.label], shares[arms.SLORA.label]
    ours = f"at most {100 * max(mine):.1f} % (S-LoRA: {100 * fifo[0]:.1f} % for small)"
    verdict = (
        Verdict.HOLDS
        if max(mine) < 0.08
        else Verdict.PARTLY
        if max(mine) < max(fifo)
        else Verdict.FAILS
    )
    return Finding(ours, verdict, "", (Table(head, tuple(rows)),))


def _tokens(record: SimRecord) -> int:
    return record.request.input_tokens + record.request.output_tokens


def between_tokens(effort: Effort) -> Finding:
    """Time between tokens: each gap (ITL), and the mean of each request (TPOT)."""
    rows, worst_s = [], {}
    for arm in (arms.SLORA, arms.CHAMELEON):
        for load in TBT_LOADS_PER_S:
            run = a40().figures(arm, load, effort)
            assert run.per_token is not None and run.gap is not None
            worst_s[arm.label, load] = run.gap.p99_s
            times_s = (run.gap.p50_s, run.gap.p99_s, run.per_token.p50_s, run.per_token.p99_s)
            rows.append((arm.label, f"{load:g}", *map(whole_ms, times_s)))
    mine_s = max(worst_s[arms.CHAMELEON.label, load] for load in TBT_LOADS_PER_S)
    is_below = all(
        worst_s[arms.CHAMELEON.label, load] <= worst_s[arms.SLORA.label, load] * (1 + NOISE)
        for load in TBT_LOADS_PER_S
    )
    head = ("arm", "load, 1/s", "P50 ITL, ms", "P99 ITL, ms", "P50 TPOT, ms", "P99 TPOT, ms")
    ours = f"P99 of gaps (ITL) {whole_ms(mine_s)} ms, {'at or below' if is_below else 'above'} S-LoRA's"
    if is_below:
        verdict = Verdict.HOLDS if mine_s <= TBT_SLO_S else Verdict.PARTLY
    else:
        verdict = Verdict.FAILS
    note = (
        "Prompts are computed in steps of their own, as S-LoRA does, and the fitted cost of LoRA in a "
        "prompt of rank 128 alone is 0.26 ms a token: a long prompt stops decoding for longer than "
        "150 ms. The mean of a request (TPOT) is above S-LoRA's, whose cadence lets ten tokens pass "
        "between two prompts. Chunked prefill has neither (row stock-vllm)."
    )
    return Finding(ours, verdict, note, (Table(head, tuple(rows)),))


def lanes(effort: Effort) -> Finding:
    """Lanes that follow the traffic against lanes cut once, at high load."""
    pair = [a40().run(arm, HIGH_LOAD_PER_S, effort) for arm in (arms.STATIC_LANES, arms.CHAMELEON)]
    fall = change(pair[0].all.ttft.p99_s, pair[1].all.ttft.p99_s)
    ours = signed_percent(fall) + change_range(
        *([f.ttft.p99_s for f in run.by_seed] for run in pair)
    )
    labels = ("static lanes", "Chameleon")
    runs = [(label, HIGH_LOAD_PER_S, run.all) for label, run in zip(labels, pair, strict=True)]
    note = "Lanes matter where their quotas bind; memory for a batch is not short at this load."
    return Finding(ours, fall_verdict((-0.10,), (fall,)), note, (latency_table(runs),))


def accuracy(effort: Effort) -> Finding:
    """Chameleon with output lengths foretold at 60, 80 and 100 %, and by a real BERT's errors."""
    runs = {
        label: a40(accuracy=share).run(arms.CHAMELEON, HIGH_LOAD_PER_S, effort)
        for label, share in (("100 %", 1.0), ("80 %", 0.8), ("60 %", 0.6), ("BERT's errors", None))
    }
    p99s = {label: [f.ttft.p99_s for f in run.by_seed] for label, run in runs.items()}
    true_s = runs["100 %"].all.ttft.p99_s
    losses = {label: change(true_s, runs[label].all.ttft.p99_s) for label in ("80 %", "60 %")}
    ours = "P99 TTFT against the truth: " + ", ".join(
        f"{label} right {signed_percent(loss)}{change_range(p99s['100 %'], p99s[label])}"
        for label, loss in losses.items()
    )
    is_hurt = losses["60 %"] > max(losses["80 %"], 0.0) + NOISE
    verdict = Verdict.PARTLY if losses["80 %"] <= 0.05 else Verdict.FAILS
    note = (
        "Lengths decide which lane a request waits in. Memory is not short, so a wrong one costs little, "
        "and seeds differ by as much."
    )
    table = latency_table([(label, HIGH_LOAD_PER_S, run.all) for label, run in runs.items()])
    return Finding(ours, Verdict.HOLDS if is_hurt else verdict, note, (table,))
