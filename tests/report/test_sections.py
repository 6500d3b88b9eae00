"""What each part of a report says of runs made for it."""

import json
import math
from pathlib import Path
from typing import Any

import pytest

from chameleon_lora.metrics.sample import Sample
from chameleon_lora.report.adapters import adapters_section
from chameleon_lora.report.headline import arms_section, headline_section
from chameleon_lora.report.latency import (
    cliff_section,
    distribution_curve,
    distribution_sections,
    load_section,
)
from chameleon_lora.report.reading import Evidence, read_evidence
from chameleon_lora.report.timeline import timeline_section, waits_section
from chameleon_lora.report.trouble import trouble_section, warnings
from tests.report.sample import RANKS, comparison, lane, record, write, write_comparison


@pytest.fixture
def compared(tmp_path: Path) -> Evidence:
    """The sample comparison."""
    return read_evidence([write_comparison(tmp_path)])


def one_run(tmp_path: Path) -> Evidence:
    """A single run that knows little."""
    fields: dict[str, Any] = {"load": None, "purpose": "run", "adapters": [], "slo_ttft_s": None}
    return read_evidence([write(tmp_path / "alone", **fields)])


@pytest.mark.parametrize("count", [1, 2, 161, 162, 5000])
def test_a_distribution_has_few_points_and_true_ones(count: int) -> None:
    """At most 161, ascending, the least and the greatest among them; the tail is denser."""
    values = [float(number) for number in range(count)]
    xs, ys = distribution_curve(values)
    assert (0.0, values[-1]) == (xs[0], xs[-1])
    assert 100.0 == ys[-1]
    assert len(xs) <= min(count, 161)
    assert list(zip(xs, ys, strict=True)) == sorted(zip(xs, ys, strict=True))
    assert all(pytest.approx(100 * (x + 1) / count) == y for x, y in zip(xs, ys, strict=True))


def test_there_is_a_distribution_for_each_load(compared: Evidence) -> None:
    """Of both times, with a curve an arm and words for those who do not see it."""
    ttft, gaps = distribution_sections(compared)
    titles = ["Time to first token, 70 % of capacity", "Time to first token, 90 % of capacity"]
    assert titles == [plot.title for plot in ttft.plots]
    assert [2, 2, 2, 2] == [len(plot.curves) for plot in (*ttft.plots, *gaps.plots)]
    assert "stock: half within 20.0 ms, 99 % within 20.0 ms." in gaps.plots[0].words
    assert max(len(curve.xs) for curve in ttft.plots[0].curves) <= 161


def test_a_sweep_shows_some_distributions_and_every_load(tmp_path: Path) -> None:
    """Four plots of six rates, the lowest and the highest among them, and the note says so."""
    for rate in range(1, 7):
        fields: dict[str, Any] = {"load": None, "purpose": "run", "rate_per_s": float(rate)}
        write(tmp_path / str(rate), **fields)
    evidence = read_evidence([tmp_path])
    ttft, _ = distribution_sections(evidence)
    ends = [ttft.plots[0].title, ttft.plots[-1].title]
    assert 4 == len(ttft.plots)
    assert ["Time to first token, 1 requests/s", "Time to first token, 6 requests/s"] == ends
    assert "Of 6 loads, these are shown: 1 requests/s," in ttft.notes[1]
    (p99, _) = load_section(evidence).plots
    assert ("requests/s", (1.0, 2.0, 3.0, 4.0, 5.0, 6.0)) == (p99.x_label, p99.curves[0].xs)


def test_latency_against_load_is_the_median_over_repeats(tmp_path: Path) -> None:
    """With the objective as a line, and the search beside it."""
    for repeat, ttft_s in enumerate((0.1, 0.9, 0.2)):
        for load in (0.7, 0.9):
            records = [record(0, ttft_s)]
            write(tmp_path / f"{repeat}{load}", records, load=load, repeat=repeat)
    fields: dict[str, Any] = {"load": 0.8, "purpose": "search", "rate_per_s": 8.0}
    write(tmp_path / "s", [record(0, 0.3)], **fields)
    p99, p50, search = load_section(read_evidence([tmp_path])).plots
    assert ((70.0, 90.0), 500.0) == (p99.curves[0].xs, p99.limit)
    assert pytest.approx((200.0, 200.0)) == p99.curves[0].ys == p50.curves[0].ys
    assert (8.0,) == search.curves[0].xs
    assert pytest.approx((300.0,)) == search.curves[0].ys


def test_the_cliff_is_the_runs_medians_by_adapters_over_slots(compared: Evidence) -> None:
    """And what the last is over the first."""
    section = cliff_section(compared)
    assert (0.5, 1.0, 2.0) == section.plots[0].curves[0].xs
    assert ("arm", "0.5", "1", "2", "last over first") == section.sheets[0].table.head
    base, ours = section.sheets[0].table.rows
    assert (("stock", "2.50"), ("ours <1>", "1.60")) == ((base[0], base[-1]), (ours[0], ours[-1]))


def test_time_lines_are_of_those_who_tell(compared: Evidence) -> None:
    """Lanes and memory of one run at the highest load; the note names run and silent arm."""
    section = timeline_section(compared)
    usage, lanes, cache = section.plots
    assert (50.0,) * 10 == usage.curves[0].ys
    assert ["running", "lane 0 waits", "lane 1 waits"] == [curve.label for curve in lanes.curves]
    assert ((4.0,) * 10, (1.0, 2.0, 3.0)) == (lanes.curves[0].ys, lanes.curves[1].ys[:3])
    assert ["slot", "host", "lent KV memory"] == [curve.label for curve in cache.curves]
    assert 5.0 == cache.curves[1].ys[0]
    assert "0-load-0.9`" in section.notes[0]
    assert "Nothing was told by: stock." == section.notes[2]


def test_servers_without_lanes_show_all_that_wait(tmp_path: Path) -> None:
    """In at most 200 points, however long the run."""
    samples = [Sample(float(at), 3, at % 5, None) for at in range(1000)]
    write(tmp_path, None, samples)
    (plot,) = timeline_section(read_evidence([tmp_path])).plots
    assert ["running", "waiting"] == [curve.label for curve in plot.curves]
    assert 200 == len(plot.curves[0].xs)
    assert (3.0, 0.0) == (plot.curves[0].ys[0], plot.curves[1].ys[0])


def test_wait_reasons_are_shares_of_samples(tmp_path: Path) -> None:
    """A sample counts once for each reason, and once for any."""
    held = [("quota", "quota"), ("quota", "slots"), (None, None), (None, "slots")]
    samples = [
        Sample(float(at), None, None, None, (lane(0, 1, one), lane(1, 1, other)))
        for at, (one, other) in enumerate(held)
    ]
    write(tmp_path, None, samples)
    (sheet,) = waits_section(read_evidence([tmp_path])).sheets
    assert ("arm", "samples", "quota", "slots", "any") == sheet.table.head
    assert (("stock", "4", "50.0 %", "50.0 %", "75.0 %"),) == sheet.table.rows


def test_adapters_are_listed_at_the_highest_load(compared: Evidence) -> None:
    """All repeats together, most requests first; failed ones are not in time."""
    fair, ranks, places, stock, ours = adapters_section(compared).sheets
    assert ["stock", "ours <1>"] == [row[0] for row in fair.table.rows]
    assert [*map(str, RANKS.values())] * 2 == [row[1] for row in ranks.table.rows]
    assert ["slot", "disk"] == [row[1] for row in places.table.rows]
    assert ("stock: 4 adapters", True, 2) == (stock.title, stock.is_folded, stock.sorted_by)
    assert [("20", "0"), ("20", "0"), ("20", "0"), ("20", "2")] == [
        row[2:4] for row in ours.table.rows
    ]
    assert "90.0 %" == ours.table.rows[-1][-1]


def test_ratios_say_which_are_better(compared: Evidence) -> None:
    """Lower is better for times and higher for throughput, where the interval does not hold 1."""
    ratios, sustained, figures = headline_section(compared).sheets
    assert ("figure and load", "stock", "ours <1>") == ratios.table.head
    assert ("P99 time to first token, 70\u00a0%", "1000 ms", "✓ 0.50 [0.40, 0.60]") == (
        ratios.table.rows[0]
    )
    assert ("output tokens/s, 90\u00a0%", "1.00", "✗ 0.90 [0.80, 0.95]") == ratios.table.rows[-1]
    assert ("ours <1>", "12.0", "1.50 [0.90, 1.60]", "2") == sustained.table.rows[1]
    assert ("stock", "70 %", "2", "80", "2") == figures.table.rows[0][:5]
    assert 4 == len(figures.table.rows)


def test_a_ratio_to_nothing_is_neither_better_nor_worse(tmp_path: Path) -> None:
    """Tokens that all came together leave a gap of 0 s, and the ratio to it is NaN."""
    write(tmp_path / "run")
    (ratio, *_) = comparison()["ratios"]
    nothing = {
        "figure": "itl_p99",
        "base": 0.0,
        "ratio": math.nan,
        "low": math.nan,
        "high": math.nan,
    }
    found = comparison(ratios=[ratio | nothing])
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    ratios = headline_section(read_evidence([tmp_path])).sheets[0]
    assert ("P99 time between tokens, 70\u00a0%", "0.00 ms", "–") == ratios.table.rows[0]


def test_what_differs_is_told_arm_by_arm(compared: Evidence) -> None:
    """The base differs from nothing."""
    section = arms_section(compared)
    assert section is not None
    rows = section.sheets[0].table.rows
    assert (("stock", "the base of the comparison"), ("ours <1>", "preset")) == rows
    assert ("ours <1>", "chameleon serve") == section.sheets[1].table.rows[1]


def test_failures_are_counted_by_cause(compared: Evidence) -> None:
    """With an example of each; and they are told before the figures."""
    causes, _ = trouble_section(compared).sheets
    assert ("stock", "HTTP 500", "7", "HTTP 500: no") == causes.table.rows[0]
    assert ("14 of 560 requests failed; the causes are below.",) == warnings(compared)


def test_what_went_wrong_with_an_arm_is_told(tmp_path: Path) -> None:
    """In the comparison's own words."""
    write(tmp_path / "run")
    found = comparison(troubles=["ours, repeat 2: no answer"])
    (tmp_path / "comparison.json").write_text(json.dumps(found))
    assert ("ours, repeat 2: no answer",) == warnings(read_evidence([tmp_path]))


def test_a_run_that_fell_behind_is_told_first(tmp_path: Path) -> None:
    """With its folder; a run in time is no warning."""
    late = write(tmp_path / "late", [record(0, late_s=0.2)])
    write(tmp_path / "good")
    evidence = read_evidence([tmp_path])
    (said,) = warnings(evidence)
    assert (
        f"fell behind in 1 run, so their latencies are its own as much as the server's: `{late}`"
        in said
    )
    assert ("stock", "2", "1", "200", "200") == trouble_section(evidence).sheets[0].table.rows[0]


def test_what_is_not_known_is_said_in_words(tmp_path: Path) -> None:
    """Each part is there, without plots, and says what it lacks."""
    evidence = one_run(tmp_path)
    assert arms_section(evidence) is None
    said = {
        load_section(evidence): "Runs at two or more loads are needed",
        cliff_section(evidence): "there is no cliff to see",
        timeline_section(evidence): "No server told of itself",
        waits_section(evidence): "No server here has lanes",
        trouble_section(evidence): "No request failed.",
    }
    for section, words in said.items():
        assert () == section.plots
        assert words in " ".join(section.notes)
    notes = " ".join(adapters_section(evidence).notes)
    assert "none was set" in notes
    assert "No run says of which rank" in notes
    assert "No server told where an adapter was" in notes


def test_only_searches_and_cliffs_make_a_report_too(tmp_path: Path) -> None:
    """Parts about fixed loads say that there is none."""
    evidence = read_evidence([write(tmp_path, purpose="cliff", load=None)])
    (ttft,) = distribution_sections(evidence)
    for section in (ttft, adapters_section(evidence)):
        assert "no run at a fixed load" in section.notes[0]
    assert () == headline_section(evidence).sheets


def test_no_request_completed_is_borne(tmp_path: Path) -> None:
    """Figures are dashes, and the distribution says why it is empty."""
    evidence = read_evidence([write(tmp_path, [record(0, error="no connection: x")])])
    (figures,) = headline_section(evidence).sheets
    assert ("1", "1", "–", "–", "–", "0.00", "0.00", "0.0 %") == figures.table.rows[0][3:]
    assert "No request was completed." == distribution_sections(evidence)[0].plots[0].words
    assert ("stock", "–", "–", "–", "–") == adapters_section(evidence).sheets[0].table.rows[0]
