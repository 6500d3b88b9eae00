"""The folder of a reproduction: summary.json, table.md, plots and one page."""

from pathlib import Path

from chameleon_lora.report.drawing import Draw, Drawing
from chameleon_lora.reproduce.page import page_text
from chameleon_lora.reproduce.report import Report, markdown_table, summary_text

SUMMARY, TABLE, PAGE, PLOTS = "summary.json", "table.md", "index.html", "plots"


def write_report(folder: Path, report: Report, draw: Draw | None) -> None:
    """Fills `folder`, which exists; without `draw` there are no plots, and the page says so."""
    drawings = _drawings(report, draw) if draw else None
    (folder / SUMMARY).write_text(summary_text(report), encoding="utf-8")
    (folder / TABLE).write_text(markdown_table(report), encoding="utf-8")
    (folder / PAGE).write_text(page_text(report, drawings), encoding="utf-8")
    if drawings:
        _write_plots(folder / PLOTS, drawings)


def _drawings(report: Report, draw: Draw) -> dict[str, tuple[Drawing, ...]]:
    """Of each row that has plots, by its key."""
    return {
        result.row.key: tuple(map(draw, result.finding.plots))
        for result in report.results
        if result.finding and result.finding.plots
    }


def _write_plots(folder: Path, drawings: dict[str, tuple[Drawing, ...]]) -> None:
    folder.mkdir()
    for key, drawn in drawings.items():
        for number, drawing in enumerate(drawn, start=1):
            (folder / f"{key}-{number}.png").write_bytes(drawing.png)
            (folder / f"{key}-{number}.svg").write_text(drawing.svg, encoding="utf-8")
