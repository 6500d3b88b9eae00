"""The page holds every row, needs nothing from outside, and can be used by everyone."""

import re
from collections import Counter
from dataclasses import replace
from pathlib import Path
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

import pytest

from chameleon_lora.report.drawing import BACKGROUND, INK, Drawing, try_drawing
from chameleon_lora.report.plot import Curve, Plot, alt_text
from chameleon_lora.report.table import Table
from chameleon_lora.reproduce.finding import Finding, Verdict
from chameleon_lora.reproduce.folder import write_report
from chameleon_lora.reproduce.page import page_text
from chameleon_lora.reproduce.page_style import STYLE
from chameleon_lora.reproduce.report import Report, RowResult
from tests.reproduce.sample import BROKEN, EFFORT, LOADS, ROWS, measure_ttft, sample_report

TEXT_CONTRAST = 4.5  # WCAG AA

SKETCH = f"""<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10">
<defs><clipPath id="clip"><rect width="9" height="9"/></clipPath></defs>
<rect width="10" height="10" style="fill: {BACKGROUND}"/>
<g id="line" clip-path="url(#clip)"><use href="#line" style="stroke: {INK}"/></g></svg>
"""


def parsed(text: str) -> Element:
    """The page's root; it is XML as well, so an element that is not closed in its turn fails here."""
    return ElementTree.fromstring(text)


def words(text: str) -> str:
    """What the page says."""
    return "".join(parsed(text).itertext())


def sketch(_plot: Plot) -> Drawing:
    """A drawing that needs no matplotlib, with ids that every drawing has."""
    return Drawing(b"PNG", SKETCH)


def sketched_page() -> str:
    """The sample's page with sketches for plots."""
    report = sample_report()
    drawings = {
        result.row.key: tuple(map(sketch, result.finding.plots))
        for result in report.results
        if result.finding
    }
    return page_text(report, drawings)


def test_every_row_has_a_line_and_a_section() -> None:
    """The line links to the section; the section has its figures, note, tables and plots."""
    text = sketched_page()
    page = parsed(text)
    assert [row.key for row in ROWS] == [section.get("id") for section in page.iter("section")]
    assert {f"#{row.key}" for row in ROWS} <= {link.get("href") for link in page.iter("a")}
    assert 3 == len(list(page.iter("figure")))
    assert 2 == len(list(page.iter("details")))
    assert "chameleon reproduce --quick throughput" in words(text)
    assert "With half the bandwidth it is 1.5x." in words(text)


def assert_ids_are_right(text: str) -> None:
    """Each id occurs once, and what is referred to is there."""
    ids = Counter(element.get("id") for element in parsed(text).iter() if element.get("id"))
    assert [] == [name for name, count in ids.items() if count > 1]
    forms = (r'href="#([^"]+)"', r"url\(#([^)]+)\)", r'aria-labelledby="([^"]+)"')
    named = {name for form in forms for name in re.findall(form, text)}
    assert set() == named - set(ids)
    assert named


def test_tables_of_one_row_are_numbered() -> None:
    """Where there are several, as their columns may be the same."""
    for count, expected in (
        (1, ["Figures: arm"]),
        (2, ["Figures (1 of 2): arm", "Figures (2 of 2): arm"]),
    ):
        finding = Finding("1", Verdict.HOLDS, tables=(Table(("arm",), (("a",),)),) * count)
        page = parsed(page_text(Report("x", EFFORT, (RowResult(ROWS[0], finding),)), {}))
        assert expected == [summary.text for summary in page.iter("summary")]


def test_ids_of_the_page_and_of_its_drawings_are_their_own() -> None:
    """Each occurs once, and each reference inside the page has its target."""
    assert_ids_are_right(sketched_page())


def test_ids_of_real_drawings_are_their_own() -> None:
    """Also where one row has two of them with the same curves."""
    draw = try_drawing()
    if draw is None:
        pytest.skip("matplotlib is not installed: pip install '.[report]'")
    plots = measure_ttft(EFFORT).plots * 2
    result = RowResult(ROWS[0], replace(measure_ttft(EFFORT), plots=plots))
    drawings = {ROWS[0].key: tuple(map(draw, plots))}
    assert_ids_are_right(page_text(Report("x", EFFORT, (result,)), drawings))


def test_the_page_needs_nothing_from_outside() -> None:
    """No script, no address but XML's names, and a policy that forbids loading anything."""
    text = sketched_page()
    tags = {element.tag for element in parsed(text).iter()}
    assert set() == tags & {"script", "link", "img", "iframe"}
    assert {"http://www.w3.org/2000/svg"} == set(re.findall(r"https?://[^\"\s<]+", text))
    assert "default-src 'none'" in text


def test_the_page_says_what_it_is_to_every_reader() -> None:
    """Language, title, width; heads of rows and columns; words for plots; focus for what scrolls."""
    page = parsed(sketched_page())
    assert "en" == page.get("lang")
    assert [1, 1, 1] == [len(list(page.iter(tag))) for tag in ("title", "h1", "main")]
    metas = [meta.get("content") for meta in page.iter("meta")]
    assert "width=device-width, initial-scale=1" in metas
    assert {"col", "row"} == {head.get("scope") for head in page.iter("th")}
    images = [element for element in page.iter() if element.get("role") == "img"]
    assert [True] * 3 == [bool(image.get("aria-label")) for image in images]
    scrolled = [box for box in page.iter("div") if box.get("class") == "scroll"]
    assert ["0"] * 3 == [box.get("tabindex") for box in scrolled]


def test_text_is_escaped() -> None:
    """What a row says is shown word for word, and is no element."""
    text = sketched_page()
    assert "the &lt;b&gt;link&lt;/b&gt; is faster &amp; &quot;adapters&quot;" in text
    assert [] == list(parsed(text).iter("b"))
    assert "Throughput at SLO <5 s" in words(text)
    assert "says <code>bench/x.py</code>." in text


def test_a_verdict_is_a_word_and_not_only_a_colour() -> None:
    """In the table, in the section and in the key."""
    text = words(sketched_page())
    for word in ("holds", "partly", "fails"):
        assert 3 <= len(re.findall(rf"\S {word}\b", text))


def test_drawings_take_the_pages_colours() -> None:
    """Text is drawn in the page's ink and on its paper, so that it can be read in the dark."""
    page = sketched_page()
    assert INK not in page.replace(STYLE, "")
    assert "stroke: currentColor" in page
    assert "fill: none" in page


def contrast(one: str, other: str) -> float:
    """Of two colours, from 1 to 21, as in WCAG."""

    def luminance(colour: str) -> float:
        parts = [int(colour[at : at + 2], 16) / 255 for at in (1, 3, 5)]
        linear = [p / 12.92 if p <= 0.04045 else ((p + 0.055) / 1.055) ** 2.4 for p in parts]
        return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]

    low, high = sorted((luminance(one), luminance(other)))
    return (high + 0.05) / (low + 0.05)


def test_text_can_be_read_in_light_and_dark() -> None:
    """Each colour of text has a contrast of 4.5 or more with the paper and the shade it is on."""
    names = re.findall(r"--([a-z]+): (#[0-9a-f]{6})", STYLE)
    light, dark = dict(names[: len(names) // 2]), dict(names[len(names) // 2 :])
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for name in ("ink", "soft", "link", "holds", "partly", "fails", "broken"):
            assert contrast(colours[name], colours["paper"]) >= TEXT_CONTRAST, name
        assert contrast(colours["soft"], colours["shade"]) >= TEXT_CONTRAST


def test_a_row_that_did_not_run_is_shown_with_its_error() -> None:
    """With a verdict of its own, which is none of the three."""
    text = words(page_text(Report("x", EFFORT, (RowResult(BROKEN, None, "ValueError: no"),)), {}))
    assert "! did not run" in text
    assert "ValueError: no" in text


def test_without_matplotlib_the_page_says_what_is_missing() -> None:
    """And how to get it; with it there is no such line."""
    assert "pip install 'chameleon-lora[report]'" in words(page_text(sample_report(), None))
    assert "chameleon-lora[report]" not in sketched_page()


def test_alt_text_tells_axes_ends_and_objective() -> None:
    """Of each curve the first and the last point."""
    one = Curve("one", (1.0,), (2.0,))
    plot = Plot(
        "T", "RPS", "s", (Curve("a", LOADS, (1.0, 2.0, 3.0, 4.5)), one, Curve("no", (), ()))
    )
    assert "T: s, by RPS. a: 1 at 4, 4.5 at 9. one: 2 at 1. no: no points." == alt_text(plot)
    limited = Plot("T", "RPS", "s", (one,), has_log_y=True, limit=5.0)
    assert "T: s, logarithmic, by RPS. one: 2 at 1. The objective is 5." == alt_text(limited)


@pytest.mark.parametrize("has_plots", [True, False])
def test_the_folder_has_every_file(tmp_path: Path, has_plots: bool) -> None:
    """Summary, table and page always; two files a plot where plots can be drawn."""
    write_report(tmp_path, sample_report(), sketch if has_plots else None)
    names = ("throughput-1", "ttft-p99-1", "ttft-p99-2")
    plots = [f"plots/{name}.{kind}" for name in names for kind in ("png", "svg")]
    expected = ["index.html", *(plots if has_plots else []), "summary.json", "table.md"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert expected == sorted(path.relative_to(tmp_path).as_posix() for path in files)
