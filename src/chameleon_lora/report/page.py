"""A report as one HTML page that needs nothing from outside; its one script only sorts tables."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape
from string import Template

from chameleon_lora import __version__
from chameleon_lora.report.columns import column_kinds
from chameleon_lora.report.compact import compact
from chameleon_lora.report.drawing import HOW_TO_INSTALL, Drawing
from chameleon_lora.report.markup import figure, plots_box, prose
from chameleon_lora.report.report_style import STYLE
from chameleon_lora.report.script import SCRIPT, script_hash
from chameleon_lora.report.section import BETTER, WORSE, Section, Sheet

SIGN_CLASSES = {BETTER: "holds", WORSE: "fails"}

# HTML that is XML as well, so that a strict parser can check it.
PAGE = Template("""\
<!DOCTYPE html>
<html lang="en">
<head>
<meta charset="utf-8"/>
<meta name="viewport" content="width=device-width, initial-scale=1"/>
<meta name="color-scheme" content="light dark"/>
<meta http-equiv="Content-Security-Policy" content="default-src 'none'; style-src 'unsafe-inline'; \
script-src '$script_hash'; base-uri 'none'; form-action 'none'"/>
<title>$title</title>
<style>
$style</style>
</head>
<body>
<a class="skip" href="#$first">To the figures</a>
<main>
<header>
<h1>$title</h1>
$lead<dl class="facts">
$facts
</dl>
$warnings<nav aria-label="Sections"><ul>
$links
</ul></nav>
</header>
$sections
<footer><p>Made by chameleon-lora $version: <code>$command</code></p></footer>
</main>
<script>$script</script>
</body>
</html>
""")

SECTION = Template("""\
<section id="$key" aria-labelledby="$key-title">
<h2 id="$key-title">$title</h2>
$body
</section>""")

TABLE = Template("""\
<div class="scroll" role="region" aria-label="$title" tabindex="0">
<table$kind>
<thead><tr>$head</tr></thead>
<tbody>
$rows
</tbody>
</table>
</div>""")


@dataclass(frozen=True, slots=True)
class Page:
    """All that a report says.

    Attributes:
        lead: a sentence below the title.
        facts: word and value of what was compared and how.
        warnings: what makes the figures doubtful.
        command: makes this page again from the runs.
    """

    title: str
    lead: str
    facts: tuple[tuple[str, str], ...]
    warnings: tuple[str, ...]
    sections: tuple[Section, ...]
    command: str


Drawings = Mapping[tuple[str, int], Drawing]
"""Plots as drawn, by their section's key and their place in it, which counts from 1."""


def page_text(page: Page, drawings: Drawings | None) -> str:
    """The whole page; without drawings, which need matplotlib, it says how to get them."""
    lead = f"<p>{prose(page.lead)}</p>\n" if page.lead else ""
    if drawings is None:
        lead += (
            "<p>Plots are left out, because matplotlib was not installed: "
            f"<code>{escape(HOW_TO_INSTALL)}</code></p>\n"
        )
    return PAGE.substitute(
        script_hash=script_hash(),
        title=escape(page.title),
        style=STYLE,
        first=page.sections[0].key if page.sections else "",
        lead=lead,
        facts="\n".join(
            f"<dt>{escape(word)}</dt><dd>{prose(text)}</dd>" for word, text in page.facts
        ),
        warnings=_warnings(page.warnings),
        links="\n".join(
            f'<li><a href="#{section.key}">{escape(section.title)}</a></li>'
            for section in page.sections
        ),
        sections="\n".join(_section(section, drawings or {}) for section in page.sections),
        version=escape(__version__),
        command=escape(page.command),
        script=SCRIPT,
    )


def _warnings(warnings: tuple[str, ...]) -> str:
    if not warnings:
        return ""
    texts = "\n".join(f"<p><strong>Note.</strong> {prose(text)}</p>" for text in warnings)
    return f'<div class="warnings">\n{texts}\n</div>\n'


def _section(section: Section, drawings: Drawings) -> str:
    parts = [f"<p>{prose(note)}</p>" for note in section.notes]
    figures = [
        figure(plot, _compact(drawings[section.key, number]), f"{section.key}-{number}-")
        for number, plot in enumerate(section.plots, start=1)
        if (section.key, number) in drawings
    ]
    if figures:
        parts.append(plots_box(figures))
    parts += [_sheet(sheet, section.title) for sheet in section.sheets]
    return SECTION.substitute(key=section.key, title=escape(section.title), body="\n".join(parts))


def _compact(drawing: Drawing) -> Drawing:
    return Drawing(drawing.png, compact(drawing.svg))


def _sheet(sheet: Sheet, section_title: str) -> str:
    title = escape(sheet.title)
    is_sortable = sheet.sorted_by is not None
    # In long tables the style goes by the table, so that the page stays small.
    kinds = [""] * len(sheet.table.head) if is_sortable else column_kinds(sheet.table)
    rows = [_row(cells, kinds) for cells in sheet.table.rows]
    table = TABLE.substitute(
        title=title or escape(section_title),
        kind=' class="sortable"' if is_sortable else "",
        head="".join(
            _head(cell, kind, is_sorted=column == sheet.sorted_by)
            for column, (cell, kind) in enumerate(zip(sheet.table.head, kinds, strict=True))
        ),
        rows="\n".join(rows),
    )
    if sheet.is_folded:
        return f"<details>\n<summary>{title}</summary>\n{table}\n</details>"
    return f"<h3>{title}</h3>\n{table}" if title else table


def _head(cell: str, kind: str, *, is_sorted: bool) -> str:
    order = ' aria-sort="descending"' if is_sorted else ""
    return f'<th scope="col"{_class(kind)}{order}>{escape(cell)}</th>'


def _row(cells: Sequence[str], kinds: Sequence[str]) -> str:
    first, *rest = map(escape, cells)
    shown = (
        f"<td{_class(' '.join(filter(None, (kind, SIGN_CLASSES.get(cell[:1])))))}>{cell}</td>"
        for cell, kind in zip(rest, kinds[1:], strict=True)
    )
    return f'<tr><th scope="row">{first}</th>{"".join(shown)}</tr>'


def _class(kind: str) -> str:
    return f' class="{kind}"' if kind else ""
