"""All findings of one run, as JSON, as Markdown and as lines of a terminal."""

import json
import math
import textwrap
from collections import Counter
from dataclasses import asdict, dataclass

from chameleon_lora.report.plot import Plot
from chameleon_lora.report.table import Table, markdown_line, markdown_table, terminal_table
from chameleon_lora.reproduce.finding import Effort, Finding, PaperRow, Verdict

DID_NOT_RUN = "did not run"
HEAD = ("row", "what is compared", "paper", "here", "verdict")
_GAP = "  "
_MIN_TEXT_WIDTH = 8


@dataclass(frozen=True, slots=True)
class RowResult:
    """A row and what came of it.

    Attributes:
        finding: None if the row's runs ended with an error.
        error: that error; else empty.
    """

    row: PaperRow
    finding: Finding | None
    error: str = ""

    @property
    def ours(self) -> str:
        """Our figure; a dash if there is none."""
        return self.finding.ours if self.finding else "-"

    @property
    def word(self) -> str:
        """`holds`, `partly` or `fails`; DID_NOT_RUN if the row's runs ended with an error."""
        return self.finding.verdict.value if self.finding else DID_NOT_RUN

    @property
    def note(self) -> str:
        """Why ours differs from the paper's, or why there is none."""
        return self.finding.note if self.finding else self.error


@dataclass(frozen=True, slots=True)
class Report:
    """Every result of one run, in the paper's order.

    Attributes:
        command: makes the same again.
    """

    command: str
    effort: Effort
    results: tuple[RowResult, ...]

    @property
    def runs(self) -> str:
        """What each simulated run was, in words."""
        seeds = ", ".join(map(str, self.effort.seeds))
        plural = "" if len(self.effort.seeds) == 1 else "s"
        return f"runs of {self.effort.duration_s:g} s of simulated traffic, seed{plural} {seeds}"

    @property
    def verdicts(self) -> str:
        """How many rows have which verdict, in words."""
        counts = Counter(result.word for result in self.results)
        words = (*(verdict.value for verdict in Verdict), DID_NOT_RUN)
        return ", ".join(f"{word}: {counts[word]}" for word in words if counts[word]) or "no rows"


def summary_text(report: Report) -> str:
    """The report as JSON: same rows, effort and version, same bytes. What is not finite is null."""
    fields = {
        "command": report.command,
        "effort": asdict(report.effort),
        "rows": [_summary(result) for result in report.results],
    }
    return json.dumps(_finite(fields), indent=2, allow_nan=False, ensure_ascii=False) + "\n"


def markdown_text(report: Report) -> str:
    """The rows as a table in Markdown, and below it the notes."""
    rows = tuple((f"`{result.row.key}`", *_cells(result)) for result in report.results)
    notes = [
        f"- `{result.row.key}`: {markdown_line(result.note)}"
        for result in report.results
        if result.note
    ]
    blocks = [
        f"`{report.command}`: {report.runs}; {report.verdicts}.",
        markdown_table(Table(HEAD, rows), ()),
        "\n".join(notes),
    ]
    return "\n\n".join(block for block in blocks if block) + "\n"


def table_lines(report: Report, width: int) -> list[str]:
    """The rows as a table of at most `width` characters."""
    rows = tuple((result.row.key, *_cells(result)) for result in report.results)
    return terminal_table(Table(HEAD, rows), width)


def result_lines(result: RowResult, key_width: int, width: int) -> list[str]:
    """One result: key, verdict, both figures; wrapped below the figures where it is too long."""
    start = f"{result.row.key:<{key_width}}{_GAP}{result.word:<{len(DID_NOT_RUN)}}{_GAP}"
    text = f"paper: {result.row.paper}; here: {result.ours}"
    if result.finding is None:
        text += f" ({result.error})"
    wrapped = textwrap.wrap(text, max(_MIN_TEXT_WIDTH, width - len(start)))
    return [
        (start if number == 0 else " " * len(start)) + line for number, line in enumerate(wrapped)
    ]


def _cells(result: RowResult) -> tuple[str, str, str, str]:
    return (result.row.claim, result.row.paper, result.ours, result.word)


def _summary(result: RowResult) -> dict[str, object]:
    finding = result.finding
    return {
        "key": result.row.key,
        "claim": result.row.claim,
        "paper": result.row.paper,
        "ours": result.ours,
        "verdict": result.word,
        "note": result.note,
        "tables": [asdict(table) for table in finding.tables] if finding else [],
        "plots": [_plot_summary(plot) for plot in finding.plots] if finding else [],
    }


def _plot_summary(plot: Plot) -> dict[str, object]:
    curves = [{"label": curve.label, "xs": curve.xs, "ys": curve.ys} for curve in plot.curves]
    return {
        "title": plot.title,
        "x_label": plot.x_label,
        "y_label": plot.y_label,
        "curves": curves,
        "has_log_y": plot.has_log_y,
        "limit": plot.limit,
    }


def _finite(value: object) -> object:
    """The value with None for each number that JSON cannot write."""
    match value:
        case float() if not math.isfinite(value):
            return None
        case dict():
            return {name: _finite(part) for name, part in value.items()}
        case list() | tuple():
            return [_finite(part) for part in value]
        case _:
            return value
