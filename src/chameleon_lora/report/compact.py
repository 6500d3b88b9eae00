"""Drawings for pages that hold many."""

import re

COMMENT = re.compile(r"<!--.*?-->|<metadata>.*?</metadata>", re.DOTALL)
COORDINATES = re.compile(r'\b(?:d|x|y|transform)="[^"]*"')
DECIMALS = re.compile(r"(\.\d)\d+")
NO_TURN = re.compile(r' transform="rotate\(-?0 [^"]*"')
FONTS = re.compile(r"font-family: [^;\"]*sans-serif")
REFERENCE = re.compile(r'(?:href="#|url\(#)([^")]+)')
ID = re.compile(r' id="([^"]+)"')
SPACES = re.compile(r"\s+")


def compact(svg: str) -> str:
    """The same picture in fewer bytes: coordinates to a tenth of a point, no ids that nothing names,
    the reader's own font."""
    svg = NO_TURN.sub("", COMMENT.sub("", svg))
    svg = COORDINATES.sub(lambda found: DECIMALS.sub(r"\1", found.group()), svg)
    named = set(REFERENCE.findall(svg))
    svg = ID.sub(lambda found: found.group() if found[1] in named else "", svg)
    svg = FONTS.sub("font-family: sans-serif", svg)
    return SPACES.sub(" ", svg).replace("> <", ">\n<").replace(' "', '"').strip()
