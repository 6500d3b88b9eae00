"""Plots of runs: logarithmic times, curves without markers, one look an arm."""

import ast
from pathlib import Path
from xml.etree import ElementTree

import pytest

from chameleon_lora.report.plot import Curve, Plot

pytest.importorskip("matplotlib", reason="matplotlib is not installed: pip install '.[report]'")

from chameleon_lora.report import plots
from chameleon_lora.report.plots import COLOURS, draw

SVG = "{http://www.w3.org/2000/svg}"


def words(svg: str) -> list[str]:
    """Every text of the SVG."""
    root = ElementTree.fromstring(svg)
    return ["".join(text.itertext()).strip() for text in root.iter(f"{SVG}text")]


def test_few_points_on_a_logarithmic_axis_are_its_numbers() -> None:
    """So that each can be read off."""
    curve = Curve("a", (0.5, 1.0, 2.0, 4.0, 8.0), (1.0, 2.0, 3.0, 4.0, 30.0))
    assert ["0.5", "1", "2", "4", "8"] == words(
        draw(Plot("t", "x", "y", (curve,), has_log_x=True)).svg
    )[:5]


def test_a_wide_logarithmic_axis_has_fewer_numbers() -> None:
    """Thirds of decades, so that they do not lie on each other."""
    xs = tuple(10.0 * 1.5**number for number in range(20))
    found = words(draw(Plot("t", "x", "y", (Curve("a", xs, xs),), has_log_x=True)).svg)
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
