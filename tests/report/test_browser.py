"""The page in a real browser: nothing complains, tables sort, it is readable in the dark and on a phone."""

from collections import defaultdict
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.report.folder import place_of, try_drawing, write_page
from chameleon_lora.report.reading import read_evidence
from chameleon_lora.report.report import report_page
from tests.report.chromium import NAMES, Chromium, chromium_path, running_chromium
from tests.report.sample import write_comparison

pytestmark = [pytest.mark.browser, pytest.mark.slow]

PHONE_WIDTH, PAPER_WIDTH = 390, 718  # A4 without its margins, at 96 dots an inch
OPEN_DETAILS = 'document.querySelectorAll("details").forEach((one) => { one.open = true; })'
TABLE = 'document.querySelector("table.sortable")'


@pytest.fixture(scope="module")
def page(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The sample comparison's page, with plots where matplotlib is."""
    folder = tmp_path_factory.mktemp("report")
    evidence = read_evidence([write_comparison(folder / "runs")])
    path = folder / "page.html"
    write_page(place_of(path), report_page(evidence, "again"), try_drawing())
    return path


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Chromium]:
    """One browser for all tests; skips where there is none."""
    path = chromium_path()
    if path is None:
        pytest.skip(f"no browser: none of {', '.join(NAMES)} is on the PATH")
    with running_chromium(path, tmp_path_factory.mktemp("home")) as browser:
        yield browser


@pytest.fixture
def browser(running: Chromium, page: Path) -> Chromium:
    """At the page, freshly loaded, on a light screen of 1280 pixels."""
    size = {"width": 1280, "height": 900, "deviceScaleFactor": 1, "mobile": False}
    running.call("Emulation.setDeviceMetricsOverride", **size)
    running.call("Emulation.setEmulatedMedia", media="", features=scheme("light"))
    running.call("Emulation.setScriptExecutionDisabled", value=False)
    running.open_page(page)
    return running


def scheme(name: str) -> list[dict[str, str]]:
    """What the reader's system prefers."""
    return [{"name": "prefers-color-scheme", "value": name}]


def complaints(browser: Chromium) -> list[object]:
    """All that a console would show."""
    kinds = ("Log.entryAdded", "Runtime.consoleAPICalled", "Runtime.exceptionThrown")
    return [event for kind in kinds for event in browser.told(kind)]


def column(browser: Chromium, number: int) -> list[str]:
    """The first sortable table's cells, from top to bottom."""
    return list(
        browser.value(f"Array.from({TABLE}.tBodies[0].rows, (r) => r.cells[{number}].textContent)")
    )


def heard_by_role(browser: Chromium) -> dict[str, list[dict[str, Any]]]:
    """Name and level of all that a screen reader meets, in the page's order."""
    found: defaultdict[str, list[dict[str, Any]]] = defaultdict(list)
    for node in browser.call("Accessibility.getFullAXTree")["nodes"]:
        if not node["ignored"]:
            fields = {each["name"]: each["value"].get("value") for each in node["properties"]}
            name = node.get("name", {}).get("value")
            found[node["role"]["value"]].append(fields | {"name": name})
    return found


def orders(browser: Chromium) -> list[str | None]:
    """aria-sort of each of its heads."""
    cells = f"{TABLE}.tHead.rows[0].cells"
    return list(browser.value(f'Array.from({cells}, (head) => head.getAttribute("aria-sort"))'))


def test_the_page_opens_without_a_complaint(browser: Chromium, page: Path) -> None:
    """The console is empty, and nothing but the page itself was asked for."""
    assert [] == complaints(browser)
    asked = [event["request"]["url"] for event in browser.told("Network.requestWillBeSent")]
    assert [page.as_uri()] == asked


def test_a_complaint_would_be_seen(browser: Chromium, page: Path) -> None:
    """Another script than the page's own is refused, and the console says so."""
    broken = page.with_name("broken.html")
    text = page.read_text("utf-8").replace("</main>", "<script>window.other = 1</script></main>")
    broken.write_text(text, "utf-8")
    browser.open_page(broken)
    assert complaints(browser)
    assert "undefined" == browser.value("typeof window.other")


def test_a_click_sorts_and_a_second_one_turns_it_round(browser: Chromium) -> None:
    """aria-sort says in which order; only one column has it."""
    assert [None, None, "descending", None, None, None, None] == orders(browser)
    browser.value(OPEN_DETAILS)
    box = browser.value(
        f"(() => {{ const b = {TABLE}.querySelectorAll('button')[1]; b.scrollIntoView();"
        "const r = b.getBoundingClientRect(); return [r.x + r.width / 2, r.y + r.height / 2]; })()"
    )
    for order, expected in (
        ("ascending", ["8", "16", "32", "64"]),
        ("descending", ["64", "32", "16", "8"]),
    ):
        for kind in ("mousePressed", "mouseReleased"):
            at = {"x": box[0], "y": box[1], "button": "left", "clickCount": 1}
            browser.call("Input.dispatchMouseEvent", type=kind, **at)
        assert expected == column(browser, 1)
        assert [None, order, None, None, None, None, None] == orders(browser)


@pytest.mark.parametrize("key", ["Enter", " "])
def test_the_keyboard_sorts_as_well(browser: Chromium, key: str) -> None:
    """Tab leads from head to head, Enter and space press them; the focus stays."""
    browser.value(OPEN_DETAILS)
    before = column(browser, 0)
    browser.value(f"{TABLE}.querySelectorAll('button')[2].focus()")
    for _ in range(2):
        browser.press("Tab")
    assert "P50 TTFT, ms" == browser.value("document.activeElement.textContent")
    browser.press(key)
    assert [None, None, None, None, "ascending", None, None] == orders(browser)
    values = [float(text) for text in column(browser, 4)]
    assert sorted(values) == values
    browser.press(key)
    assert before[::-1] == column(browser, 0)
    assert "P50 TTFT, ms" == browser.value("document.activeElement.textContent")


def test_without_scripts_all_is_there_but_the_sorting(browser: Chromium, page: Path) -> None:
    """No button that does nothing."""
    rows = "document.querySelectorAll('tr').length"
    count = browser.value(rows)
    assert 14 == browser.value("document.querySelectorAll('th button').length")
    browser.call("Emulation.setScriptExecutionDisabled", value=True)
    browser.open_page(page)
    assert count == browser.value(rows)
    assert 0 == browser.value("document.querySelectorAll('button').length")


def test_the_dark_page_is_dark(browser: Chromium) -> None:
    """Light words on a dark ground, in plots as well."""
    ground = "getComputedStyle(document.body).backgroundColor"
    plot = "document.querySelector('svg text')"
    assert "rgb(255, 255, 255)" == browser.value(ground)
    browser.call("Emulation.setEmulatedMedia", features=scheme("dark"))
    assert "rgb(20, 24, 29)" == browser.value(ground)
    ink = "rgb(230, 237, 243)"
    assert ink == browser.value("getComputedStyle(document.body).color")
    assert ink == browser.value(f"{plot} ? getComputedStyle({plot}).fill : '{ink}'")


def test_a_phone_scrolls_the_page_in_one_direction_only(browser: Chromium) -> None:
    """At 390 pixels nothing sticks out to the right; wide tables scroll by themselves."""
    size = {"width": PHONE_WIDTH, "height": 844, "deviceScaleFactor": 1, "mobile": True}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    browser.value(OPEN_DETAILS)
    assert PHONE_WIDTH == browser.value("document.documentElement.scrollWidth")
    assert browser.value(f"{TABLE}.closest('.scroll').scrollWidth > {PHONE_WIDTH}")


def test_paper_holds_whole_tables(browser: Chromium) -> None:
    """At the width of A4 none is cut off; what was folded stays so."""
    size = {"width": PAPER_WIDTH, "height": 1000, "deviceScaleFactor": 1, "mobile": False}
    browser.call("Emulation.setDeviceMetricsOverride", **size)
    browser.call("Emulation.setEmulatedMedia", media="print", features=scheme("light"))
    assert PAPER_WIDTH == browser.value("document.documentElement.scrollWidth")
    assert "none" == browser.value("getComputedStyle(document.querySelector('details')).display")


def test_a_screen_reader_hears_every_plot_and_heading(browser: Chromium) -> None:
    """Plots are images with names, and headings go down one level at a time."""
    heard = heard_by_role(browser)
    figures = browser.value("document.querySelectorAll('figure').length")
    assert figures == len(heard["image"])
    assert all(image["name"] for image in heard["image"])
    levels = [heading["level"] for heading in heard["heading"]]
    assert (1, 1) == (levels[0], levels.count(1))
    assert all(after <= before + 1 for before, after in pairwise(levels))
    unnamed = browser.value(
        "Array.from(document.querySelectorAll('[role=region], [role=img]'))"
        ".filter((one) => !one.getAttribute('aria-label') "
        "&& !one.getAttribute('aria-labelledby')).length"
    )
    assert 0 == unnamed
