"""The page holds every part, needs nothing from outside, and can be read by everyone."""

import base64
import hashlib
import re
from itertools import pairwise
from pathlib import Path

import pytest

from chameleon_lora.report.folder import place_of, try_drawing, write_page
from chameleon_lora.report.markup import compact, html_text, markdown_text
from chameleon_lora.report.page import Page, Section, Sheet
from chameleon_lora.report.plot import Curve, Plot, alt_text
from chameleon_lora.report.reading import read_evidence
from chameleon_lora.report.report import report_page
from chameleon_lora.report.table import Table, column_kinds
from tests.report.pages import SKETCH, assert_ids_are_right, parsed, sketch, sketched, words
from tests.report.sample import ADAPTERS, write, write_comparison

COMMAND = "chameleon report runs --out page.html"
TEXT_CONTRAST = 4.5  # WCAG AA


def compared(tmp_path: Path) -> Page:
    """The sample comparison's page."""
    return report_page(read_evidence([write_comparison(tmp_path / "runs")]), COMMAND)


def test_every_part_is_there_and_linked(tmp_path: Path) -> None:
    """A section for each link; each plot has a name, each table a head for every column."""
    text = sketched(compared(tmp_path))
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
    assert_ids_are_right(sketched(compared(tmp_path)))


def test_only_the_pages_own_script_may_run(tmp_path: Path) -> None:
    """The policy names its hash, and forbids loading anything."""
    text = sketched(compared(tmp_path))
    (script,) = re.findall(r"<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert f"script-src 'sha256-{digest}'" in text
    assert "default-src 'none'" in text
    assert {"http://www.w3.org/2000/svg"} == set(re.findall(r"https?://[^\"\s<]+", text))


def test_what_runs_are_called_is_no_markup(tmp_path: Path) -> None:
    """An arm's label is shown word for word."""
    text = sketched(compared(tmp_path))
    assert "ours <1>" in words(text)
    assert "ours <1>" not in text
    assert "ours &lt;1> against stock" in markdown_text(compared(tmp_path / "again"))


def test_headings_come_in_order(tmp_path: Path) -> None:
    """One first, and no level is left out on the way down."""
    root = parsed(sketched(compared(tmp_path)))
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
    said = words(html_text(page, None))
    assert "pip install 'chameleon-lora[report]'" in said
    assert "adapter-3" in said
    assert "chameleon-lora[report]" not in sketched(page)


def test_one_run_makes_a_page(tmp_path: Path) -> None:
    """Named after its server."""
    page = report_page(read_evidence([write(tmp_path / "run", load=None, purpose="run")]), COMMAND)
    assert "Benchmark of stock" == page.title
    assert "1 run of stock, with 3 requests that count." == page.lead
    assert parsed(sketched(page)) is not None


def test_what_was_left_out_is_named(tmp_path: Path) -> None:
    """Before the figures, and in Markdown."""
    write(tmp_path / "good")
    write(tmp_path / "broken").joinpath("records.jsonl").unlink()
    page = report_page(read_evidence([tmp_path]), COMMAND)
    expected = f"Left out: {tmp_path / 'broken'} is half-written"
    assert expected in words(sketched(page))
    assert expected in markdown_text(page)


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
    names = re.findall(r"--([a-z]+): (#[0-9a-f]{6})", sketched(Page("t", "", (), (), (), "c")))
    light, dark = dict(names[: len(names) // 2]), dict(names[len(names) // 2 :])
    assert light.keys() == dark.keys()
    for colours in (light, dark):
        for name in ("ink", "soft", "link", "holds", "partly", "fails", "broken"):
            assert contrast(colours[name], colours["paper"]) >= TEXT_CONTRAST, name
        assert contrast(colours["soft"], colours["shade"]) >= TEXT_CONTRAST


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
    assert len(small) < 0.85 * len(SKETCH)


def test_alt_text_says_what_the_curves_show() -> None:
    """Their ends, unless the plot has words of its own."""
    curve = Curve("a", (1.0, 2.0), (3.0, 4.0))
    assert "T: y, by x. a: 3 at 1, 4 at 2." == alt_text(Plot("T", "x", "y", (curve,)))
    told = Plot("T", "x", "y", (curve,), limit=5.0, words="a: half within 3.")
    assert "T: y, by x. a: half within 3. The objective is 5." == alt_text(told)


def test_alt_text_tells_axes_ends_and_objective() -> None:
    """Of each curve the first and the last point."""
    one = Curve("one", (1.0,), (2.0,))
    plot = Plot(
        "T",
        "RPS",
        "s",
        (Curve("a", (4.0, 6.0, 8.0, 9.0), (1.0, 2.0, 3.0, 4.5)), one, Curve("no", (), ())),
    )
    assert "T: s, by RPS. a: 1 at 4, 4.5 at 9. one: 2 at 1. no: no points." == alt_text(plot)
    limited = Plot("T", "RPS", "s", (one,), has_log_y=True, limit=5.0)
    assert "T: s, logarithmic, by RPS. one: 2 at 1. The objective is 5." == alt_text(limited)


@pytest.mark.parametrize("has_plots", [True, False])
def test_a_folder_holds_page_table_and_plots(tmp_path: Path, has_plots: bool) -> None:
    """Plots where they can be drawn; a second report goes over the first."""
    out = tmp_path / "out"
    page = compared(tmp_path)
    for _ in range(2):
        write_page(place_of(out), page, sketch if has_plots else None, has_table=True)
    files = sorted(path.relative_to(out).as_posix() for path in out.rglob("*") if path.is_file())
    assert ["index.html", "report.md"] == [name for name in files if not name.startswith("plots/")]
    assert (20 if has_plots else 0) == len([name for name in files if name.startswith("plots/")])
    assert has_plots == ("](plots/ttft-1.png)" in (out / "report.md").read_text("utf-8"))


def test_a_name_that_ends_like_a_page_is_a_page_alone(tmp_path: Path) -> None:
    """Nothing lies beside it unless it is asked for."""
    out = tmp_path / "new" / "page.html"
    page = Page("t", "", (), (), (Section("a", "A", ("note",)),), COMMAND)
    write_page(place_of(out), page, sketch)
    assert [out] == list(out.parent.iterdir())
    write_page(place_of(out), page, sketch, has_table=True)
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
        write_page(place_of(tmp_path / name), page, draw)
        texts.append((tmp_path / name).read_bytes())
    assert texts[0] == texts[1]
