"""Plots are the same bytes each time, hold their words, give an arm one look, and bear odd data."""

import ast
from hashlib import sha256
from itertools import combinations
from pathlib import Path
from xml.etree import ElementTree

import pytest

from chameleon_lora.report.folder import try_drawing
from chameleon_lora.report.plot import BACKGROUND, INK, Curve, Drawing, Plot
from tests.reproduce.sample import EFFORT, measure_ttft

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[report]'")

import matplotlib as mpl
from matplotlib.colors import to_rgb

from chameleon_lora.report import plots
from chameleon_lora.report.plots import COLOURS, DASHES, MARKERS, draw

TTFT, MANY = measure_ttft(EFFORT).plots
PNG_START = b"\x89PNG\r\n\x1a\n"
SVG = "{http://www.w3.org/2000/svg}"
WHITE_CONTRAST = 2.0


def words(drawing: Drawing) -> list[str]:
    """Every text of the SVG."""
    root = ElementTree.fromstring(drawing.svg)
    return ["".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")]


def digest(drawing: Drawing) -> tuple[str, str]:
    """Of PNG and SVG, so that a difference is told in two lines."""
    png, svg = sha256(drawing.png), sha256(drawing.svg.encode())
    return png.hexdigest(), svg.hexdigest()


def luminance(colour: str) -> float:
    """As in WCAG's definition of contrast."""
    parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in to_rgb(colour)]
    return 0.2126 * parts[0] + 0.7152 * parts[1] + 0.0722 * parts[2]


def test_the_same_plot_gives_the_same_bytes() -> None:
    """PNG and SVG, on a second call and with other settings of the user's in between."""
    first = draw(TTFT)
    with mpl.rc_context({"font.size": 30.0, "svg.hashsalt": "other", "xtick.direction": "in"}):
        assert digest(first) == digest(draw(TTFT))
    assert first.png.startswith(PNG_START)
    assert "<dc:date>" not in first.svg


def test_a_plot_names_its_axes_curves_and_objective() -> None:
    """As text, not as outlines."""
    texts = words(draw(TTFT))
    for word in (
        "P99 TTFT by load",
        "requests/s",
        "P99 TTFT, s",
        "S-LoRA",
        "Chameleon",
        "objective",
    ):
        assert word in texts


def test_a_logarithmic_axis_has_plain_numbers() -> None:
    """Seconds, not powers of ten, also where the values span less than a decade."""
    assert {"0.1", "1", "5"} <= set(words(draw(TTFT)))
    narrow = Plot("t", "x", "y", (Curve("a", (1.0, 2.0), (3.2, 4.6)),), has_log_y=True)
    assert {"3.4", "4"} <= set(words(draw(narrow)))


def test_curves_differ_by_more_than_colour() -> None:
    """No two of the first twelve share colour and dashes, or colour and marker."""
    looks = [
        (COLOURS[n % len(COLOURS)], DASHES[n % len(DASHES)], MARKERS[n % len(MARKERS)])
        for n in range(12)
    ]
    for one, other in combinations(looks, 2):
        assert one[:2] != other[:2]
        assert one[::2] != other[::2]
    assert all(1.05 / (luminance(colour) + 0.05) > WHITE_CONTRAST for colour in COLOURS)


@pytest.mark.parametrize(
    "plot",
    [
        Plot("nothing", "x", "y", ()),
        Plot("no points", "x", "y", (Curve("a", (), ()),)),
        Plot("not finite", "x", "y", (Curve("a", (1.0, 2.0), (float("nan"), float("inf"))),)),
        Plot("zeros", "x", "y", (Curve("a", (1.0, 2.0), (0.0, 0.0)),), has_log_y=True),
        Plot("one point", "x", "y", (Curve("a", (1.0,), (1.0,)),), limit=2.0),
        Plot("signs < & $x$", "x", "y", (Curve("_a", (1.0, 2.0), (1.0, 2.0)),)),
    ],
    ids=lambda plot: plot.title,
)
def test_odd_data_is_drawn_all_the_same(plot: Plot) -> None:
    """Without a warning, and with its title word for word."""
    drawing = draw(plot)
    assert drawing.png.startswith(PNG_START)
    assert plot.title in words(drawing)


def test_a_legend_of_many_curves_lies_below_the_plot() -> None:
    """And not on the curves; the figure is higher by it."""
    heights = [ElementTree.fromstring(draw(plot).svg).get("height") for plot in (TTFT, MANY)]
    assert ["270pt", "317.52pt"] == heights


def test_words_are_in_the_colours_that_a_page_may_replace() -> None:
    """INK on BACKGROUND."""
    svg = draw(MANY).svg
    assert INK in svg
    assert BACKGROUND in svg


def test_matplotlib_is_found_where_it_is() -> None:
    """The drawing function is the one of `plots`."""
    assert try_drawing() is draw


def test_few_points_on_a_logarithmic_axis_are_its_numbers() -> None:
    """So that each can be read off."""
    curve = Curve("a", (0.5, 1.0, 2.0, 4.0, 8.0), (1.0, 2.0, 3.0, 4.0, 30.0))
    assert ["0.5", "1", "2", "4", "8"] == words(
        draw(Plot("t", "x", "y", (curve,), has_log_x=True))
    )[:5]


def test_a_wide_logarithmic_axis_has_fewer_numbers() -> None:
    """Thirds of decades, so that they do not lie on each other."""
    xs = tuple(10.0 * 1.5**number for number in range(20))
    found = words(draw(Plot("t", "x", "y", (Curve("a", xs, xs),), has_log_x=True)))
    assert {"10", "30", "100", "300", "1000", "3000", "10000"} <= set(found)
    assert not {"20", "50", "200"} & set(found[:10])


def test_an_arm_has_its_look_wherever_it_stands() -> None:
    """The third arm's colour, alone in a plot; and no markers where there are none."""
    curve = Curve("a", (1.0, 2.0), (1.0, 2.0), look=2)
    marked = draw(Plot("t", "x", "y", (curve,))).svg
    plain = draw(Plot("t", "x", "y", (curve,), has_markers=False)).svg
    assert COLOURS[2].lower() in marked
    assert COLOURS[0].lower() not in marked
    assert plain.count("<use") < marked.count("<use")


def test_what_draws_knows_nothing_of_who_asks_it_to() -> None:
    """It is imported by its name, which no import contract sees; so it may need plots alone, or there
    would be a circle that nobody finds."""
    tree = ast.parse(Path(plots.__file__).read_text(encoding="utf-8"))
    needed = {node.module for node in ast.walk(tree) if isinstance(node, ast.ImportFrom)}
    ours = {name for name in needed if name and name.startswith("chameleon_lora")}
    assert {"chameleon_lora.report.plot"} == ours
