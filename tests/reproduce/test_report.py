"""Results as JSON, Markdown and lines of a terminal."""

import json

from chameleon_lora.reproduce.report import (
    Report,
    RowResult,
    markdown_text,
    result_lines,
    summary_text,
    table_lines,
)
from tests.reproduce.sample import BROKEN, EFFORT, ROWS, WIDE, sample_report

RESULTS = sample_report().results
BROKEN_RESULT = RowResult(BROKEN, None, "ValueError: no capacity at 0 requests/s")

TABLE = """\
row         what is      paper         here          verdict
            compared
----------  -----------  ------------  ------------  -------
ttft-p99    P99 TTFT vs  -14.7 /       -16.1 /       holds
            S-LoRA at 6  -24.6 /       -27.0 /
            / 8 / 9 RPS  -80.7 %       -81.2 %
throughput  throughput   12.9 vs 8.6   1.3x          partly
            at SLO <5 s  RPS: 1.5x
eviction    eviction at  -18 / -22 %   +2.0 %        fails
            8 RPS, P99
            TTFT | LRU,
            FairShare
"""

MARKDOWN = """\
`chameleon reproduce --quick`: runs of 240 s of simulated traffic, seed 1; \
holds: 1, partly: 1, fails: 1.

| row | what is compared | paper | here | verdict |
| --- | --- | --- | --- | --- |
| `ttft-p99` | P99 TTFT vs S-LoRA at 6 / 8 / 9 RPS | -14.7 / -24.6 / -80.7 % \
| -16.1 / -27.0 / -81.2 % | holds |
| `throughput` | throughput at SLO &lt;5 s | 12.9 vs 8.6 RPS: 1.5x | 1.3x | partly |
| `eviction` | eviction at 8 RPS, P99 TTFT \\| LRU, FairShare | -18 / -22 % | +2.0 % | fails |

- `throughput`: Ours is smaller: the &lt;b>link&lt;/b> is faster &amp; "adapters" are loaded while \
requests wait. With half the bandwidth it is 1.5x.
- `eviction`: No such effect, says `bench/x.py`.
"""


def test_the_summary_has_every_field_of_every_row() -> None:
    """Figures, verdict, note, tables and the points of the plots; what is not finite is null."""
    summary = json.loads(summary_text(sample_report()))
    assert {"duration_s": 240.0, "seeds": [1]} == summary["effort"]
    first, second, _ = summary["rows"]
    assert {
        "key": "throughput",
        "claim": "throughput at SLO <5 s",
        "paper": "12.9 vs 8.6 RPS: 1.5x",
        "ours": "1.3x",
        "verdict": "partly",
        "note": RESULTS[1].note,
        "tables": [{"head": list(WIDE.head), "rows": [list(WIDE.rows[0])]}],
    } == {name: value for name, value in second.items() if name != "plots"}
    assert [1.0, None] == second["plots"][0]["curves"][0]["ys"]
    assert ["RPS", "S-LoRA P99, s", "Chameleon P99, s"] == first["tables"][0]["head"]


def test_the_same_run_gives_the_same_summary() -> None:
    """Byte for byte: it holds no time and no machine."""
    assert summary_text(sample_report()) == summary_text(sample_report())


def test_a_row_that_did_not_run_is_in_the_summary_with_its_error() -> None:
    """It is no finding, and is not left out."""
    (row,) = json.loads(summary_text(Report("x", EFFORT, (BROKEN_RESULT,))))["rows"]
    assert ("did not run", "-", BROKEN_RESULT.error, []) == (
        row["verdict"],
        row["ours"],
        row["note"],
        row["plots"],
    )


def test_the_markdown_table_keeps_its_columns() -> None:
    """Pipes are escaped, line breaks are gone, nothing is taken for HTML; notes follow."""
    assert MARKDOWN == markdown_text(sample_report())


def test_the_report_says_what_it_ran_and_how_it_went() -> None:
    """Seeds in words, verdicts counted, those that occur only."""
    report = Report("x", EFFORT, (*RESULTS, RESULTS[0], BROKEN_RESULT))
    assert "holds: 2, partly: 1, fails: 1, did not run: 1" == report.verdicts
    assert "no rows" == Report("x", EFFORT, ()).verdicts
    assert "runs of 240 s of simulated traffic, seed 1" == report.runs


def test_a_table_fits_the_width_it_is_given() -> None:
    """Long cells wrap inside their column, and no line is longer than asked for."""
    lines = table_lines(sample_report(), 60)
    assert TABLE == "\n".join(lines) + "\n"
    assert all(len(line) <= 60 for line in lines)


def test_a_table_takes_no_more_than_it_needs() -> None:
    """With room enough each row is one line."""
    assert 2 + len(ROWS) == len(table_lines(sample_report(), 200))


def test_a_line_tells_a_row_as_it_ends() -> None:
    """Aligned with the others by the longest key; wrapped below the figures."""
    assert ["throughput  partly       paper: 12.9 vs 8.6 RPS: 1.5x; here: 1.3x"] == result_lines(
        RESULTS[1], 10, 80
    )
    assert [
        "ttft-p99    holds        paper: -14.7 / -24.6 / -80.7 %;",
        "                         here: -16.1 / -27.0 / -81.2 %",
    ] == result_lines(RESULTS[0], 10, 60)


def test_a_line_tells_the_error_of_a_row_that_did_not_run() -> None:
    """In place of a figure."""
    assert [
        "broken  did not run  paper: -; here: - (ValueError: no capacity at 0 requests/s)"
    ] == result_lines(BROKEN_RESULT, 6, 90)
