"""What the GPU run prints."""

from experiments.gpu.outcome import Outcome, Status
from experiments.gpu.table import markdown, rows

PROOF = {
    "batch 1": {
        "with stock": {"equal": 77, "answers": 78},
        "stock with itself": {"equal": 39, "answers": 39},
    },
    "swaps": 132,
    "swaps_seen": 132,
    "wrong_adapters": 0,
    "wrong_adapters_in_storm": 2,
    "checks": 10_004,
    "demotions": {"demand": 900, "replaced": 100},
    "preemptions": 321,
}
RATIO = {
    "label": "chameleon",
    "figure": "ttft_p99",
    "point": 1.05,
    "ratio": 0.4,
    "low": 0.3,
    "high": 0.5,
}
OUTCOMES = {
    "proof-v2-async": Outcome("proof-v2-async", Status.FAILED, "1 of 78 | differs", 200.0, PROOF),
    "compare": Outcome(
        "compare", Status.DONE, "", 400.0,
        {"capacity_per_s": 12.0, "slo_ttft_s": 0.5, "ratios": [RATIO]},
    ),
}  # fmt: skip
NAMES = ("machine", "proof-v2-async", "compare")


def test_a_failed_stage_shows_its_figures_all_the_same() -> None:
    """Wrong answers are added up over all parts."""
    found = dict(rows(OUTCOMES))
    assert (
        "77 of 78 (stock's to its own: 39 of 39)"
        == found["proof-v2-async: batch 1, answers equal to stock's"]
    )
    assert "2" == found["proof-v2-async: answers of another adapter"]
    assert (
        "10004 (1000 evictions, 321 preemptions)"
        == found["proof-v2-async: activations compared byte by byte"]
    )
    assert "0.40 of stock's [0.30, 0.50]" == found["compare: chameleon, ttft_p99 at 1.05"]


def test_each_stage_has_a_line_that_says_how_it_ended() -> None:
    """Also one that was never begun."""
    lines = markdown(OUTCOMES, NAMES, "run").splitlines()
    assert "| machine | left out | 0 | not begun |" in lines


def test_markdown_survives_a_bar_in_a_reason() -> None:
    """The cell stays one cell."""
    text = markdown(OUTCOMES, NAMES, "python -m experiments.gpu.run --out x")
    assert "| proof-v2-async | failed | 200 | 1 of 78 \\| differs |" in text.splitlines()
