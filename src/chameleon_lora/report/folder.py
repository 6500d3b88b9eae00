"""The files of a page: itself, and on demand its plots and a Markdown table."""

import importlib
import importlib.util
from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.errors import ConfigError
from chameleon_lora.report.markup import PlotKey, html_text, markdown_text, plot_name
from chameleon_lora.report.page import Page
from chameleon_lora.report.plot import Draw, Drawing

PAGE, TABLE, PLOTS = "index.html", "report.md", "plots"
PAGE_ENDINGS = frozenset({".html", ".htm"})


@dataclass(frozen=True, slots=True)
class PageFiles:
    """Where the files go.

    Attributes:
        page: the page's file.
        has_plots: plots are written as files, too, into the page's folder.
    """

    page: Path
    has_plots: bool


def place_of(out: Path) -> PageFiles:
    """A page alone for a name that ends like one; else a folder with page and plots."""
    if out.suffix.lower() in PAGE_ENDINGS and not out.is_dir():
        return PageFiles(out, has_plots=False)
    return PageFiles(out / PAGE, has_plots=True)


def try_drawing() -> Draw | None:
    """What draws plots; None where matplotlib is not installed."""
    if importlib.util.find_spec("matplotlib") is None:
        return None
    # Here and not above, because matplotlib may be missing and takes half a second.
    draw: Draw = importlib.import_module("chameleon_lora.report.plots").draw
    return draw


def write_page(place: PageFiles, page: Page, draw: Draw | None, *, has_table: bool = False) -> None:
    """Writes the files over former ones of theirs; other files are left alone.

    Without `draw` there are no plots, and the page says how to get them.

    Raises:
        ConfigError: a file cannot be written.
    """
    drawings = _drawings(page, draw) if draw else None
    drawn = drawings if drawings and place.has_plots else {}
    folder = place.page.parent
    try:
        folder.mkdir(parents=True, exist_ok=True)
        place.page.write_text(html_text(page, drawings), encoding="utf-8")
        if has_table:
            (folder / TABLE).write_text(markdown_text(page, drawn), encoding="utf-8")
        if drawn:
            (folder / PLOTS).mkdir(exist_ok=True)
        for (key, number), drawing in drawn.items():
            name = plot_name(key, number)
            (folder / f"{name}.png").write_bytes(drawing.png)
            (folder / f"{name}.svg").write_text(drawing.svg, encoding="utf-8")
    except OSError as error:
        raise ConfigError(
            f"{error.filename or place.page} cannot be written ({error.strerror}); name another --out"
        ) from error


def _drawings(page: Page, draw: Draw) -> dict[PlotKey, Drawing]:
    return {
        (section.key, number): draw(plot)
        for section in page.sections
        for number, plot in enumerate(section.plots, start=1)
    }
