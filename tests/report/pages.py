"""Pages without matplotlib, and what is in them."""

import re
from collections import Counter
from xml.etree import ElementTree
from xml.etree.ElementTree import Element

from chameleon_lora.report.markup import html_text
from chameleon_lora.report.page import Page
from chameleon_lora.report.plot import BACKGROUND, INK, Drawing, Plot

SKETCH = f"""<?xml version="1.0"?>
<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 10 10"><!-- drawn -->
 <defs><clipPath id="clip"><rect width="9" height="9"/></clipPath></defs>
 <rect width="10" height="10" style="fill: {BACKGROUND}"/>
 <g id="line"><path id="idle" d="M 0.123456 5.987654
L 10 5.25" clip-path="url(#clip)" style="stroke: {INK}"/><use href="#line"/>
 <text transform="rotate(-0 1 2)" style="font-family: 'DejaVu Sans', sans-serif">a b</text></g></svg>
"""


def sketch(_plot: Plot) -> Drawing:
    """A drawing that needs no matplotlib, with ids that every drawing has."""
    return Drawing(b"PNG", SKETCH)


def sketched(page: Page) -> str:
    """The page with sketches for plots."""
    drawings = {
        (section.key, number): sketch(plot)
        for section in page.sections
        for number, plot in enumerate(section.plots, start=1)
    }
    return html_text(page, drawings)


def parsed(text: str) -> Element:
    """The page's root; it is XML as well, so an element that is not closed in its turn fails here."""
    return ElementTree.fromstring(text)


def words(text: str) -> str:
    """What the page says."""
    return "".join(parsed(text).itertext())


def assert_ids_are_right(text: str) -> None:
    """Each id occurs once, and what is referred to is there."""
    ids = Counter(element.get("id") for element in parsed(text).iter() if element.get("id"))
    assert [] == [name for name, count in ids.items() if count > 1]
    forms = (r'href="#([^"]+)"', r"url\(#([^)]+)\)", r'aria-labelledby="([^"]+)"')
    named = {name for form in forms for name in re.findall(form, text)}
    assert set() == named - set(ids)
    assert named
