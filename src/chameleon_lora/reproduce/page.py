"""A run of the paper's rows as a page, and the folder with it: summary.json, table.md, plots."""

from pathlib import Path

from chameleon_lora.report.folder import PAGE, PageFiles, write_page
from chameleon_lora.report.page import Page, Section, Sheet
from chameleon_lora.report.plot import Draw
from chameleon_lora.report.table import Table
from chameleon_lora.reproduce.finding import Verdict
from chameleon_lora.reproduce.report import (
    DID_NOT_RUN,
    Report,
    RowResult,
    markdown_text,
    summary_text,
)

SUMMARY, TABLE = "summary.json", "table.md"
LEAD = (
    "Each row of the evaluation in “Chameleon: Adaptive Caching and Scheduling for Many-Adapter LLM "
    "Inference” (MICRO '25), on the simulator of chameleon-lora: what the paper gives, what we find, "
    "and whether the claim holds. The same command gives the same figures again."
)
SIGNS = {
    Verdict.HOLDS.value: "✓",
    Verdict.PARTLY.value: "≈",
    Verdict.FAILS.value: "✗",
    DID_NOT_RUN: "!",
}
"""Of each verdict, what stands before its word."""
MEANINGS = (
    (Verdict.HOLDS, "as large as claimed, or larger"),
    (Verdict.PARTLY, "in the claimed direction, but smaller"),
    (Verdict.FAILS, "no such effect here, or the opposite"),
)


def write_report(folder: Path, report: Report, draw: Draw | None) -> None:
    """Fills `folder`; without `draw` there are no plots, and the page says so.

    Raises:
        ConfigError, OSError: a file cannot be written.
    """
    write_page(PageFiles(folder / PAGE, has_plots=True), report_page(report), draw)
    (folder / SUMMARY).write_text(summary_text(report), encoding="utf-8")
    (folder / TABLE).write_text(markdown_text(report), encoding="utf-8")


def report_page(report: Report) -> Page:
    """A table of all rows, which leads to a section each."""
    sections = tuple(_section(result, report) for result in report.results)
    rows = tuple((section.title, *(value for _, value in section.facts)) for section in sections)
    table = Table(("What is compared", "Paper", "Here", "Verdict"), rows)
    index = Section(
        key="rows",
        title="All rows",
        sheets=(Sheet("", table, targets=tuple(section.key for section in sections)),),
        facts=tuple((_verdict(verdict.value), words) for verdict, words in MEANINGS),
    )
    facts = (("Verdicts", report.verdicts), ("Each row", report.runs))
    return Page(
        "The paper's claims, measured again", LEAD, facts, (), (index, *sections), report.command
    )


def _section(result: RowResult, report: Report) -> Section:
    row, finding = result.row, result.finding
    quick = " --quick" if "--quick" in report.command.split() else ""
    return Section(
        key=row.key,
        title=row.claim[:1].upper() + row.claim[1:],
        notes=tuple(text for text in result.note.split("\n\n") if text),
        plots=finding.plots if finding else (),
        sheets=_sheets(finding.tables) if finding else (),
        facts=(("Paper", row.paper), ("Here", result.ours), ("Verdict", _verdict(result.word))),
        command=f"chameleon reproduce{quick} {row.key}",
    )


def _sheets(tables: tuple[Table, ...]) -> tuple[Sheet, ...]:
    """Named after their columns, and numbered where there are several."""
    count = len(tables)
    return tuple(
        Sheet(
            f"Figures{f' ({number} of {count})' if count > 1 else ''}: "
            + " · ".join(filter(None, table.head)),
            table,
            is_folded=True,
        )
        for number, table in enumerate(tables, start=1)
    )


def _verdict(word: str) -> str:
    return f"{SIGNS[word]} {word}"
