"""A report as Markdown: its notes and its shorter tables."""

from collections.abc import Collection

from chameleon_lora.report.columns import NUMBERS, column_kinds
from chameleon_lora.report.page import Page
from chameleon_lora.report.plot import alt_text
from chameleon_lora.report.section import Section
from chameleon_lora.report.table import Table


def markdown_text(page: Page, plots: Collection[tuple[str, int]] = ()) -> str:
    """All but the folded tables; `plots` are those there are files of, as `plot_name` names them."""
    blocks = [f"# {_line(page.title)}"]
    if page.lead:
        blocks.append(_line(page.lead))
    blocks.append("\n".join(f"- {word}: {_line(text)}" for word, text in page.facts))
    if page.warnings:
        blocks.append("\n".join(f"- **Note.** {_line(text)}" for text in page.warnings))
    for section in page.sections:
        blocks += _section_blocks(section, plots)
    blocks.append(f"Made again by `{page.command}`.")
    return "\n\n".join(block for block in blocks if block) + "\n"


def plot_name(key: str, number: int) -> str:
    """A plot's file, without its ending."""
    return f"plots/{key}-{number}"


def _section_blocks(section: Section, plots: Collection[tuple[str, int]]) -> list[str]:
    blocks = [f"## {_line(section.title)}", *map(_line, section.notes)]
    blocks += [
        f"![{_line(alt_text(plot)).replace(']', ')').replace('[', '(')}]"
        f"({plot_name(section.key, number)}.png)"
        for number, plot in enumerate(section.plots, start=1)
        if (section.key, number) in plots
    ]
    for sheet in section.sheets:
        if not sheet.is_folded:
            blocks += [f"### {_line(sheet.title)}" if sheet.title else "", _table(sheet.table)]
    return blocks


def _table(table: Table) -> str:
    rule = ["---:" if kind == NUMBERS else "---" for kind in column_kinds(table)]
    return "\n".join(map(_row, (table.head, rule, *table.rows)))


def _row(cells: Collection[str]) -> str:
    return "| " + " | ".join(_line(cell).replace("|", "\\|") for cell in cells) + " |"


def _line(text: str) -> str:
    """In one line, and nothing in it taken for HTML."""
    return " ".join(text.replace("&", "&amp;").replace("<", "&lt;").split())
