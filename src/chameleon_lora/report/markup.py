"""A page as HTML and as Markdown."""

import base64
import hashlib
import re
from collections.abc import Collection, Mapping
from importlib.resources import files

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup, escape

from chameleon_lora import __version__
from chameleon_lora.report.page import Page, Section
from chameleon_lora.report.plot import BACKGROUND, INK, Drawing, alt_text
from chameleon_lora.report.table import (
    SIGN_CLASSES,
    column_kinds,
    markdown_line,
    markdown_table,
)

HOW_TO_DRAW = "pip install 'chameleon-lora[report]'"
PlotKey = tuple[str, int]
"""A plot's section, by its key, and its place there, which counts from 1."""

_CODE = re.compile(r"`([^`]+)`")
_COMMENT = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)
_COORDINATES = re.compile(r'\b(?:d|x|y|transform)="[^"]*"')
_DECIMALS = re.compile(r"(\.\d)\d+")
_NO_TURN = re.compile(r' transform="rotate\(-?0 [^"]*"')
_FONTS = re.compile(r"font-family: [^;\"]*sans-serif")
_REFERENCE = re.compile(r'(?:href="#|url\(#)([^")]+)')
_ID = re.compile(r' id="([^"]+)"')
_ANY_ID = re.compile(r'(\bid="|href="#|url\(#)')
_SPACES = re.compile(r"\s+")


def html_text(page: Page, drawings: Mapping[PlotKey, Drawing] | None) -> str:
    """The whole page, in one file that needs nothing from outside and whose one script sorts tables.

    Without drawings, which need matplotlib, it says how to get them.
    """
    is_sortable = any(
        sheet.sorted_by is not None for section in page.sections for sheet in section.sheets
    )
    script = _asset("page.js") if is_sortable else ""
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    return _TEMPLATES.get_template("page.html.jinja").render(
        page=page,
        drawings=drawings,
        how_to_draw=HOW_TO_DRAW,
        style=Markup(_asset("page.css")),
        script=Markup(script),
        script_hash=f"sha256-{digest}",
        version=__version__,
    )


def markdown_text(page: Page, plots: Collection[PlotKey] = ()) -> str:
    """All but the folded tables; `plots` are those there are files of, as `plot_name` names them."""
    blocks = [f"# {markdown_line(page.title)}", markdown_line(page.lead)]
    blocks.append("\n".join(f"- {word}: {markdown_line(text)}" for word, text in page.facts))
    blocks.append("\n".join(f"- **Note.** {markdown_line(text)}" for text in page.warnings))
    for section in page.sections:
        blocks += _section_blocks(section, plots)
    blocks.append(f"Made again by `{page.command}`.")
    return "\n\n".join(block for block in blocks if block) + "\n"


def plot_name(key: str, number: int) -> str:
    """A plot's file, without its ending."""
    return f"plots/{key}-{number}"


def compact(svg: str) -> str:
    """The same picture in fewer bytes: coordinates to a tenth of a point, no ids that nothing names,
    the reader's own font."""
    svg = _NO_TURN.sub("", _COMMENT.sub("", svg))
    svg = _COORDINATES.sub(lambda found: _DECIMALS.sub(r"\1", found.group()), svg)
    named = set(_REFERENCE.findall(svg))
    svg = _ID.sub(lambda found: found.group() if found[1] in named else "", svg)
    svg = _FONTS.sub("font-family: sans-serif", svg)
    return _SPACES.sub(" ", svg).replace("> <", ">\n<").replace(' "', '"').strip()


def _inline_svg(drawing: Drawing, prefix: str) -> Markup:
    """In the page's colours, its ids unlike those of other drawings, silent beside its alt text."""
    svg = compact(drawing.svg)
    svg = svg[svg.index("<svg") :].replace(INK, "currentColor").replace(BACKGROUND, "none")
    svg = _ANY_ID.sub(lambda found: found.group() + prefix, svg)
    return Markup(svg.replace("<svg", '<svg aria-hidden="true" focusable="false"', 1))


def _prose(text: str) -> Markup:
    """What stands in backticks is set as code."""
    return Markup(_CODE.sub(r"<code>\1</code>", str(escape(text))))


def _classes(text: str, kind: str = "") -> Markup:
    """An element's classes: its column's kind, and the colour of the sign that it begins with."""
    sign = SIGN_CLASSES.get(text[:1], "") if text[1:2] == " " else ""
    words = " ".join(filter(None, (kind, sign)))
    return Markup(f' class="{words}"' if words else "")


def _section_blocks(section: Section, plots: Collection[PlotKey]) -> list[str]:
    blocks = [f"## {markdown_line(section.title)}", *map(markdown_line, section.notes)]
    blocks += [
        f"![{markdown_line(alt_text(plot)).replace(']', ')').replace('[', '(')}]"
        f"({plot_name(section.key, number)}.png)"
        for number, plot in enumerate(section.plots, start=1)
        if (section.key, number) in plots
    ]
    for sheet in section.sheets:
        if not sheet.is_folded:
            blocks.append(f"### {markdown_line(sheet.title)}" if sheet.title else "")
            blocks.append(markdown_table(sheet.table, column_kinds(sheet.table)))
    return blocks


def _asset(name: str) -> str:
    return (files("chameleon_lora.report") / "assets" / name).read_text(encoding="utf-8")


_TEMPLATES = Environment(
    loader=PackageLoader("chameleon_lora.report"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
    keep_trailing_newline=True,
)
_TEMPLATES.filters |= {
    "alt_text": alt_text,
    "classes": _classes,
    "column_kinds": column_kinds,
    "inline_svg": _inline_svg,
    "prose": _prose,
}
