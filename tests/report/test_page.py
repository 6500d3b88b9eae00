"""The page holds every part, needs nothing from outside, and can be read by everyone."""

import base64
import hashlib
import re
from collections import Counter
from itertools import pairwise
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from chameleon_lora.report.columns import column_kinds
from chameleon_lora.report.compact import compact
from chameleon_lora.report.drawing import BACKGROUND, INK, Drawing, try_drawing
from chameleon_lora.report.folder import place_of, write_report
from chameleon_lora.report.markdown import markdown_text
from chameleon_lora.report.page import Page, page_text
from chameleon_lora.report.plot import Curve, Plot, alt_text
from chameleon_lora.report.reading import read_evidence
from chameleon_lora.report.report import report_page
from chameleon_lora.report.section import Section, Sheet
from chameleon_lora.report.table import Table
from tests.report.sample import ADAPTERS, write, write_comparison

COMMAND = "chameleon report runs --out page.html"
SKETCH = f"""<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><!-- drawn -->
 <defs><clipPath id="clip"><rect width="9" height="9"/></clipPath></defs>
 <rect width="10" height="10" style="fill: {BACKGROUND}"/>
 <g id="line"><path id="idle" d="M 0.123456 5.987654
L 10 5.25" clip-path="url(#clip)" style="stroke: {INK}"/>
 <text transform="rotate(-0 1 2)" style="font-family: 'DejaVu Sans', sans-serif">a b</text></g></svg>
"""


def sketch(_plot: Plot) -> Drawing:
    """A drawing that needs no matplotlib, with ids that every drawing has."""
    return Drawing(b"PNG", SKETCH)


def compared(tmp_path: Path) -> Page:
    """The sample comparison's page."""
    return report_page(read_evidence([write_comparison(tmp_path / "runs")]), COMMAND)


def text_of(page: Page) -> str:
    """The page with sketches for plots."""
    drawings = {
        (section.key, number): sketch(plot)
        for section in page.sections
        for number, plot in enumerate(section.plots, start=1)
    }
    return page_text(page, drawings)


def parsed(text: str) -> Element:
    """The page's root; it is XML as well, so an element that is not closed in its turn fails here."""
    return ElementTree.fromstring(text)


def words(text: str) -> str:
    """What the page says."""
    return "".join(parsed(text).itertext())


def test_every_part_is_there_and_linked(tmp_path: Path) -> None:
    """A section for each link; each plot has a name, each table a head for every column."""
    text = text_of(compared(tmp_path))
    root = parsed(text)
    links = [link.get("href") for link in root.iter("a") if link.get("class") != "skip"]
    assert [f"#{section.get('id')}" for section in root.iter("section")] == links
    images = [element for element in root.iter() if element.get("role") == "img"]
    assert 10 == len(images)
    assert all(image.get("aria-label") for image in images)
    for table in root.iter("table"):
        rows = [len(list(row)) for row in table.iter("tr")]
        assert [rows[0]] * len(rows) == rows
    assert {"col", "row"} == {head.get("scope") for head in root.iter("th")}
    said = words(text)
    lead = "14 runs of stock and ours <1> (8 at shares of capacity, 6 with more and more adapters)"
    for expected in (
        lead,
        "ours <1> against stock",
        "2 cores",
        "10.0 requests/s",
        COMMAND,
        *ADAPTERS,
    ):
        assert expected in said


def test_ids_occur_once_and_references_have_their_target(tmp_path: Path) -> None:
    """Of the page and of its drawings."""
    text = text_of(compared(tmp_path))
    ids = Counter(element.get("id") for element in parsed(text).iter() if element.get("id"))
    assert [] == [name for name, count in ids.items() if count > 1]
    forms = (r'href="#([^"]+)"', r"url\(#([^)]+)\)", r'aria-labelledby="([^"]+)"')
    named = {name for form in forms for name in re.findall(form, text)}
    assert set() == named - set(ids)


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    """The policy names its hash, and forbids loading anything."""
    text = text_of(compared(tmp_path))
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text
    assert {"http://www.w3.org/2000/svg"} == set(re.findall(r"https?://[^\"\s<]+", text))


def test_what_runs_are_called_is_no_markup(tmp_path: Path) -> None:
    """An arm's label is shown word for word."""
    text = text_of(compared(tmp_path))
    assert "ours <1>" in words(text)
    assert "ours <1>" not in text
    assert "ours &lt;1> against stock" in markdown_text(compared(tmp_path / "again"))


def test_headings_come_in_order(tmp_path: Path) -> None:
    """One first, and no level is left out on the way down."""
    root = parsed(text_of(compared(tmp_path)))
    levels = [int(found.tag[1]) for found in root.iter() if re.fullmatch(r"h\d", found.tag)]
    assert (1, 1) == (levels[0], levels.count(1))
    assert all(after <= before + 1 for before, after in pairwise(levels))


def test_numbers_stand_to_the_right_and_words_do_not() -> None:
    """In the page and in Markdown; a dash or a sign makes no word of a number, and no row no column."""
    rows = (("a", "✓ 1.5", "–", "x"), ("b", "2", "3 %", "y" * 50))
    table = Table(("arm", "n", "share", "why"), rows)
    assert ["", "number", "number", "long"] == column_kinds(table)
    assert ["", ""] == column_kinds(Table(("arm", "n"), ()))
    text = markdown_text(
        Page("t", "", (), (), (Section("a", "A", sheets=(Sheet("", table),)),), "c")
    )
    assert "| --- | ---: | ---: | --- |" in text


def test_without_matplotlib_the_page_says_what_is_missing(tmp_path: Path) -> None:
    """And how to get it; tables are all there."""
    page = compared(tmp_path)
    said = words(page_text(page, None))
    assert "pip install 'chameleon-lora[report]'" in said
    assert "adapter-3" in said
    assert "chameleon-lora[report]" not in text_of(page)


def test_one_run_makes_a_page(tmp_path: Path) -> None:
    """Named after its server."""
    page = report_page(read_evidence([write(tmp_path / "run", load=None, purpose="run")]), COMMAND)
    assert "Benchmark of stock" == page.title
    assert "1 run of stock, with 3 requests that count." == page.lead
    assert parsed(text_of(page)) is not None


def test_what_was_left_out_is_named(tmp_path: Path) -> None:
    """Before the figures, and in Markdown."""
    write(tmp_path / "good")
    write(tmp_path / "broken").joinpath("records.jsonl").unlink()
    page = report_page(read_evidence([tmp_path]), COMMAND)
    expected = f"Left out: {tmp_path / 'broken'} is half-written"
    assert expected in words(text_of(page))
    assert expected in markdown_text(page)


def test_compact_drawings_are_the_same_in_fewer_bytes() -> None:
    """Coordinates to a tenth; ids stay if something names them."""
    small = compact(SKETCH)
    shapes = [element.tag for element in parsed(SKETCH).iter()]
    assert shapes == [element.tag for element in parsed(small).iter()]
    assert 'd="M 0.1 5.9 L 10 5.2"' in small
    assert 'id="clip"' in small
    assert "idle" not in small
    assert "drawn" not in small
    assert "rotate" not in small
    assert "font-family: sans-serif" in small
    assert len(small) < 0.8 * len(SKETCH)


def test_alt_text_says_what_the_curves_show() -> None:
    """Their ends, unless the plot has words of its own."""
    curve = Curve("a", (1.0, 2.0), (3.0, 4.0))
    assert "T: y, by x. a: 3 at 1, 4 at 2." == alt_text(Plot("T", "x", "y", (curve,)))
    told = Plot("T", "x", "y", (curve,), limit=5.0, words="a: half within 3.")
    assert "T: y, by x. a: half within 3. The objective is 5." == alt_text(told)


@pytest.mark.parametrize("has_plots", [True, False])
def test_a_folder_holds_page_table_and_plots(tmp_path: Path, has_plots: bool) -> None:
    """Plots where they can be drawn; a second report goes over the first."""
    out = tmp_path / "out"
    page = compared(tmp_path)
    for _ in range(2):
        write_report(place_of(out), page, sketch if has_plots else None, has_table=True)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert ["index.html", "report.md"] == [name for name in files if not name.startswith("plots/")]
    assert (20 if has_plots else 0) == len([name for name in files if name.startswith("plots/")])
    assert has_plots == ("](plots/ttft-1.png)" in (out / "report.md").read_text("utf-8"))


def test_a_name_that_ends_like_a_page_is_a_page_alone(tmp_path: Path) -> None:
    """Nothing lies beside it unless it is asked for."""
    out = tmp_path / "new" / "page.html"
    page = Page("t", "", (), (), (Section("a", "A", ("note",)),), COMMAND)
    write_report(place_of(out), page, sketch, has_table=False)
    assert [out] == list(out.parent.iterdir())
    write_report(place_of(out), page, sketch, has_table=True)
    assert ["page.html", "report.md"] == sorted(path.name for path in out.parent.iterdir())


def test_the_same_runs_give_the_same_page(tmp_path: Path) -> None:
    """Byte for byte, real plots included."""
    draw = try_drawing()
    if draw is None:
        pytest.skip("matplotlib is not installed: pip install '.[report]'")
    write(tmp_path / "run")
    texts = []
    for name in ("a.html", "b.html"):
        page = report_page(read_evidence([tmp_path / "run"]), COMMAND)
        write_report(place_of(tmp_path / name), page, draw, has_table=False)
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]
