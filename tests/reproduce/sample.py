"""Rows that need no simulation, and their report."""

from chameleon_lora.report.plot import Curve, Plot
from chameleon_lora.report.table import Table
from chameleon_lora.reproduce.finding import Effort, Finding, PaperRow, Verdict
from chameleon_lora.reproduce.report import Report, RowResult

EFFORT = Effort(duration_s=240.0, seeds=(1,))
LOADS = (4.0, 6.0, 8.0, 9.0)
WIDE = Table(
    ("arm", *(f"{load} RPS" for load in range(12))),
    (("Chameleon without its cache", *(f"{load}.25 s" for load in range(12))),),
)


def measure_ttft(effort: Effort) -> Finding:
    """Curves with an objective, on a logarithmic axis; figures that depend on the effort."""
    slow = tuple(effort.duration_s * load**3 / 1e5 for load in LOADS)
    fast = tuple(y * 0.4 for y in slow)
    return Finding(
        ours="-16.1 / -27.0 / -81.2 %",
        verdict=Verdict.HOLDS,
        tables=(
            Table(
                ("RPS", "S-LoRA P99, s", "Chameleon P99, s"),
                tuple(
                    (f"{x:g}", f"{y:.2f}", f"{z:.2f}")
                    for x, y, z in zip(LOADS, slow, fast, strict=True)
                ),
            ),
        ),
        plots=(
            Plot(
                "P99 TTFT by load",
                "requests/s",
                "P99 TTFT, s",
                (Curve("S-LoRA", LOADS, slow), Curve("Chameleon", LOADS, fast)),
                has_log_y=True,
                limit=5.0,
            ),
            Plot(
                "P50 TTFT by load",
                "requests/s",
                "P50 TTFT, s",
                tuple(Curve(f"arm {n}", LOADS, tuple(y / (n + 2) for y in slow)) for n in range(6)),
            ),
        ),
    )


def measure_partly(_effort: Effort) -> Finding:
    """A row with a note that must be escaped, and a figure that is not finite."""
    return Finding(
        ours="1.3x",
        verdict=Verdict.PARTLY,
        note='Ours is smaller: the <b>link</b> is faster & "adapters" are loaded while requests wait.'
        "\n\nWith half the bandwidth it is 1.5x.",
        tables=(WIDE,),
        plots=(Plot("Empty | odd", "x", "y", (Curve("a", (1.0, 2.0), (1.0, float("inf"))),)),),
    )


def measure_fails(_effort: Effort) -> Finding:
    """A row without plots or tables."""
    return Finding(ours="+2.0 %", verdict=Verdict.FAILS, note="No such effect, says `bench/x.py`.")


def measure_broken(_effort: Effort) -> Finding:
    """A row whose run ends with an error."""
    raise ValueError("no capacity at 0 requests/s")


ROWS = (
    PaperRow(
        "ttft-p99", "P99 TTFT vs S-LoRA at 6 / 8 / 9 RPS", "-14.7 / -24.6 / -80.7 %", measure_ttft
    ),
    PaperRow("throughput", "throughput at SLO <5 s", "12.9 vs 8.6 RPS: 1.5x", measure_partly),
    PaperRow(
        "eviction", "eviction at 8 RPS, P99 TTFT | LRU, FairShare", "-18 / -22 %", measure_fails
    ),
)
BROKEN = PaperRow("broken", "a row whose run ends with an error", "-", measure_broken)


def measure_sample(key: str, effort: Effort) -> Finding:
    """The finding of the row of that name, for worker processes."""
    (row,) = (row for row in (*ROWS, BROKEN) if row.key == key)
    return row.measure(effort)


def sample_report() -> Report:
    """What a run of ROWS comes to."""
    results = tuple(RowResult(row, row.measure(EFFORT)) for row in ROWS)
    return Report("chameleon reproduce --quick", EFFORT, results)
