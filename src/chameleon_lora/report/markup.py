"""Pieces of pages: prose, plots and tables as HTML that is XML as well, so that a strict parser can
check it."""

import re
from html import escape
from string import Template

from chameleon_lora.report.drawing import BACKGROUND, INK, Drawing
from chameleon_lora.report.plot import Plot, alt_text
from chameleon_lora.report.table import Table

NUMBER = re.compile(r"[-+−<>~≤≥±]?\s*\d")
CODE = re.compile(r"`([^`]+)`")
SVG_ID = re.compile(r'(\bid="|href="#|url\(#)')

FIGURE = Template("""\
<figure>
<div class="plot" role="img" aria-label="$alt">
$svg
</div>
</figure>""")

DETAILS = Template("""\
<details>
<summary>$title</summary>
<div class="scroll" role="region" aria-label="$title" tabindex="0">
<table>
<thead><tr>$head</tr></thead>
<tbody>
$rows
</tbody>
</table>
</div>
</details>""")


def prose(text: str) -> str:
    """Escaped; what stands in backticks is set as code."""
    return CODE.sub(r"<code>\1</code>", escape(text))


def figure(plot: Plot, drawing: Drawing, prefix: str) -> str:
    """The drawing inside the page: in the page's colours, its ids unlike those of other drawings."""
    svg = drawing.svg[drawing.svg.index("<svg") :]
    svg = svg.replace(INK, "currentColor").replace(BACKGROUND, "none")
    svg = SVG_ID.sub(lambda found: found.group() + prefix, svg)
    svg = svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1)
    return FIGURE.substitute(alt=escape(alt_text(plot)), svg=svg.rstrip())


def plots_box(figures: list[str]) -> str:
    """Figures side by side where there is room."""
    return '<div class="plots">\n' + "\n".join(figures) + "\n</div>"


def folded_table(table: Table, title: str) -> str:
    """A table that is shown on demand; `title` names it."""
    head = "".join(f'<th scope="col">{escape(cell)}</th>' for cell in table.head)
    rows = "\n".join(map(_table_row, table.rows))
    return DETAILS.substitute(title=escape(title), head=head, rows=rows)


def _table_row(cells: tuple[str, ...]) -> str:
    name = f'<th scope="row">{escape(cells[0])}</th>' if cells else ""
    return f"<tr>{name}{''.join(map(_cell, cells[1:]))}</tr>"


def _cell(text: str) -> str:
    kind = ' class="number"' if NUMBER.match(text) else ""
    return f"<td{kind}>{escape(text)}</td>"
