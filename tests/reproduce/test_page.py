"""The page holds every row, needs nothing from outside, and can be used by everyone."""

import re
from dataclasses import replace
from pathlib import Path

import pytest

from chameleon_lora.report.folder import try_drawing
from chameleon_lora.report.markup import html_text
from chameleon_lora.report.plot import INK
from chameleon_lora.report.table import Table
from chameleon_lora.reproduce.finding import Finding, Verdict
from chameleon_lora.reproduce.page import report_page, write_report
from chameleon_lora.reproduce.report import Report, RowResult
from tests.report.pages import assert_ids_are_right, parsed, sketch, sketched, words
from tests.reproduce.sample import BROKEN, EFFORT, ROWS, measure_ttft, sample_report


def test_every_row_has_a_line_and_a_section() -> None:
    """The line links to the section; the section has its figures, note, tables and plots."""
    text = sketched(report_page(sample_report()))
    page = parsed(text)
    assert ["rows", *(row.key for row in ROWS)] == [
        section.get("id") for section in page.iter("section")
    ]
    assert {f"#{row.key}" for row in ROWS} <= {link.get("href") for link in page.iter("a")}
    assert 3 == len(list(page.iter("figure")))
    assert 2 == len(list(page.iter("details")))
    assert "chameleon reproduce --quick throughput" in words(text)
    assert "With half the bandwidth it is 1.5x." in words(text)


def test_tables_of_one_row_are_numbered() -> None:
    """Where there are several, as their columns may be the same."""
    for count, expected in (
        (1, ["Figures: arm"]),
        (2, ["Figures (1 of 2): arm", "Figures (2 of 2): arm"]),
    ):
        finding = Finding("1", Verdict.HOLDS, tables=(Table(("arm",), (("a",),)),) * count)
        page = parsed(sketched(report_page(Report("x", EFFORT, (RowResult(ROWS[0], finding),)))))
        assert expected == [summary.text for summary in page.iter("summary")]


def test_ids_of_the_page_and_of_its_drawings_are_their_own() -> None:
    """Each occurs once, and each reference inside the page has its target."""
    assert_ids_are_right(sketched(report_page(sample_report())))


def test_ids_of_real_drawings_are_their_own() -> None:
    """Also where one row has two of them with the same curves."""
    draw = try_drawing()
    if draw is None:
        pytest.skip("matplotlib is not installed: pip install '.[report]'")
    plots = measure_ttft(EFFORT).plots * 2
    result = RowResult(ROWS[0], replace(measure_ttft(EFFORT), plots=plots))
    drawings = {(ROWS[0].key, number): draw(plot) for number, plot in enumerate(plots, start=1)}
    page = report_page(Report("x", EFFORT, (result,)))
    assert_ids_are_right(html_text(page, drawings))


def test_the_page_needs_nothing_from_outside() -> None:
    """No script, no address but XML's names, and a policy that forbids loading anything."""
    text = sketched(report_page(sample_report()))
    tags = {element.tag for element in parsed(text).iter()}
    assert set() == tags & {"script", "link", "img", "iframe"}
    assert {"http://www.w3.org/2000/svg"} == set(re.findall(r"https?://[^\"\s<]+", text))
    assert "default-src 'none'" in text


def test_the_page_says_what_it_is_to_every_reader() -> None:
    """Language, title, width; heads of rows and columns; words for plots; focus for what scrolls."""
    page = parsed(sketched(report_page(sample_report())))
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
    text = sketched(report_page(sample_report()))
    assert "the &lt;b&gt;link&lt;/b&gt; is faster &amp; &#34;adapters&#34;" in text
    assert [] == list(parsed(text).iter("b"))
    assert "Throughput at SLO <5 s" in words(text)
    assert "says <code>bench/x.py</code>." in text


def test_a_verdict_is_a_word_and_not_only_a_colour() -> None:
    """In the table, in the section and in the key."""
    text = words(sketched(report_page(sample_report())))
    for word in ("holds", "partly", "fails"):
        assert 3 <= len(re.findall(rf"\S {word}\b", text))


def test_drawings_take_the_pages_colours() -> None:
    """Text is drawn in the page's ink and on its paper, so that it can be read in the dark."""
    page = sketched(report_page(sample_report()))
    assert INK not in re.sub("<style>.*</style>", "", page, flags=re.DOTALL)
    assert "stroke: currentColor" in page
    assert "fill: none" in page


def test_a_row_that_did_not_run_is_shown_with_its_error() -> None:
    """With a verdict of its own, which is none of the three."""
    report = Report("x", EFFORT, (RowResult(BROKEN, None, "ValueError: no"),))
    text = words(sketched(report_page(report)))
    assert "! did not run" in text
    assert "ValueError: no" in text


def test_without_matplotlib_the_page_says_what_is_missing() -> None:
    """And how to get it; with it there is no such line."""
    assert "pip install 'chameleon-lora[report]'" in words(
        html_text(report_page(sample_report()), None)
    )
    assert "chameleon-lora[report]" not in sketched(report_page(sample_report()))


@pytest.mark.parametrize("has_plots", [True, False])
def test_the_folder_has_every_file(tmp_path: Path, has_plots: bool) -> None:
    """Summary, table and page always; two files a plot where plots can be drawn."""
    write_report(tmp_path, sample_report(), sketch if has_plots else None)
    names = ("throughput-1", "ttft-p99-1", "ttft-p99-2")
    plots = [f"plots/{name}.{kind}" for name in names for kind in ("png", "svg")]
    expected = ["index.html", *(plots if has_plots else []), "summary.json", "table.md"]
    files = [path for path in tmp_path.rglob("*") if path.is_file()]
    assert expected == sorted(path.relative_to(tmp_path).as_posix() for path in files)
