"""The demo's table."""

from pathlib import Path

from chameleon_lora.compare.demo_table import ArmResult, comparison_table
from chameleon_lora.compare.observations import Observations
from chameleon_lora.metrics.summary import summarise
from tests.metrics.records import record


def arm(name: str, first_s: float, observations: Observations | None) -> ArmResult:
    """A run of one request with two tokens, 0.5 s apart."""
    records = (record(0, 0.0, (first_s, first_s + 0.5)),)
    return ArmResult(name, Path(), records, summarise(records), observations)


def cells(table: str, label: str) -> list[str]:
    """The figures in the line that begins with `label`."""
    (line,) = (line for line in table.splitlines() if line.startswith(label))
    return line.removeprefix(label).split()


def test_each_figure_has_both_servers_and_their_ratio() -> None:
    """First tokens after 1.5 and 0.75 s, stalls of 0.2 and 0.05 s."""
    stock = arm("stock", 1.5, Observations(24, 60, 0.2))
    chameleon = arm("chameleon", 0.75, Observations(12, 30, 0.05))
    table = comparison_table(stock, chameleon)
    assert ["stock", "chameleon", "ratio"] == table.splitlines()[0].split()
    assert cells(table, "TTFT P50, ms") == ["1,500", "750", "0.50"]
    assert cells(table, "TTFT P99, ms") == ["1,500", "750", "0.50"]
    assert cells(table, "time between tokens P99, ms") == ["500", "500", "1.00"]
    assert cells(table, "throughput, output tokens/s") == ["1.0", "1.6", "1.60"]
    assert cells(table, "cold loads") == ["24", "12", "0.50"]
    assert cells(table, "stalled, ms") == ["200", "50", "0.25"]
    assert cells(table, "TTFT, median of paired ratios") == ["0.50"]


def test_what_was_not_observed_is_a_dash() -> None:
    """A server without an observer shows no loads, rather than none."""
    table = comparison_table(arm("a", 1.0, None), arm("b", 1.0, Observations(3, 3, 0.1)))
    assert cells(table, "cold loads") == ["-", "3", "-"]


def test_no_line_is_wider_than_a_terminal() -> None:
    """80 columns."""
    table = comparison_table(arm("stock", 1.0, None), arm("chameleon", 1.0, None))
    assert max(map(len, table.splitlines())) <= 80
