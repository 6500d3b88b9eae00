"""A run's result as text."""

from dataclasses import replace
from typing import Any

import pytest

from chameleon_lora.bench.printed import (
    beside_lines,
    has_fallen_behind,
    printable,
    result_lines,
    sweep_lines,
)
from chameleon_lora.metrics.errors import by_cause
from chameleon_lora.metrics.objectives import Objective
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.metrics.serving import Window, serving_result
from tests.metrics.records import record

WINDOW = Window(0.0, 10.0, {Objective.TTFT: 1.0}, {"a": 8})
ANSWERED = record(0, 0.0, (1.0, 1.5, 2.5))
FAILED = record(1, 0.0, (), error="HTTP 404 for 'a': no such model")

BLOCK = """\
============ Serving Benchmark Result ============
Successful requests:                     1
Failed requests:                         0
Request rate configured (RPS):           0.50
Benchmark duration (s):                  10.00
Total input tokens:                      10
Total generated tokens:                  3
Request throughput (req/s):              0.10
Request goodput (req/s):                 0.10
Output token throughput (tok/s):         0.30
Peak output token throughput (tok/s):    2.00
Peak concurrent requests:                1.00
Total token throughput (tok/s):          1.30
---------------Time to First Token----------------
Mean TTFT (ms):                          1000.00
Median TTFT (ms):                        1000.00
P99 TTFT (ms):                           1000.00
-----Time per Output Token (excl. 1st token)------
Mean TPOT (ms):                          750.00
Median TPOT (ms):                        750.00
P99 TPOT (ms):                           750.00
---------------Inter-token Latency----------------
Mean ITL (ms):                           750.00
Median ITL (ms):                         750.00
P99 ITL (ms):                            995.00
----------------End-to-end Latency----------------
Mean E2EL (ms):                          2500.00
Median E2EL (ms):                        2500.00
P99 E2EL (ms):                           2500.00
=================================================="""


def result_of(*records: RequestRecord, window: Window = WINDOW) -> dict[str, Any]:
    """A result with the rate that the command adds."""
    return {"request_rate": 0.5, **serving_result(records, window)}


def beside(*records: RequestRecord, window: Window = WINDOW) -> str:
    """What is printed below vLLM's block."""
    return "\n".join(beside_lines(result_of(*records, window=window), by_cause(records)))


def test_the_block_is_vllms() -> None:
    """Labels, columns and order; values fill ten places, as vLLM's do."""
    lines = result_lines(result_of(ANSWERED))
    assert BLOCK.splitlines() == [line.rstrip() for line in lines]
    assert {50, 51} == {len(line) for line in lines}


def test_without_objectives_there_is_no_goodput() -> None:
    """Neither its line nor a section of objectives."""
    plain = replace(WINDOW, objectives={})
    assert "goodput" not in "\n".join(result_lines(result_of(ANSWERED, window=plain)))
    assert "objectives" not in beside(ANSWERED, window=plain)


def test_objectives_and_how_often_they_were_met() -> None:
    """Half: one of two failed."""
    text = beside(ANSWERED, FAILED)
    assert "Objectives (ms):                         ttft 1000 " in text
    assert "Requests that met all (%):               50.00" in text


def test_the_slowest_adapters_come_first_and_five_are_shown() -> None:
    """Six adapters, first tokens after 1 to 6 s: the fastest is left out."""
    rows = [replace(record(n, 0.0, (float(n),)), adapter=f"x{n}") for n in range(1, 7)]
    shown = [line.split()[0] for line in beside(*rows).splitlines() if line.startswith("x")]
    assert ["x6", "x5", "x4", "x3", "x2"] == shown


def test_ranks_and_residencies_are_shown_where_known() -> None:
    """A rank of 8 from the folder, host memory from the server."""
    text = beside(replace(ANSWERED, residency="host"))
    assert "By LoRA rank" in text
    assert "\nhost                             1" in text
    assert "By where the adapter was" not in beside(ANSWERED)


def test_fairness_names_the_worst() -> None:
    """Two adapters with five requests each, one three times as slow as the other."""
    rows = [replace(record(n, 0.0, (1.0 + 2 * (n % 2),)), adapter="ab"[n % 2]) for n in range(10)]
    text = beside(*rows)
    assert "Adapters compared:                       2" in text
    assert "Worst adapter:                           b" in text


def test_a_run_that_fell_behind_says_so() -> None:
    """In the run's sections and in the line of a sweep; one in time does not."""
    late = replace(ANSWERED, sent_s=0.5)
    assert "THE RUN FELL BEHIND: P99 is above 50 ms" in beside(late)
    assert has_fallen_behind(result_of(late))
    assert "(fell behind)" in sweep_lines([result_of(late)])[-1]
    assert "FELL BEHIND" not in beside(ANSWERED)


def test_errors_have_a_count_an_example_and_a_way_out() -> None:
    """By cause, with the adapters that were asked for."""
    text = beside(ANSWERED, FAILED)
    assert "HTTP 404:                                1" in text
    assert "such as: HTTP 404 for 'a': no such model" in text
    assert "adapters: a\n" in text
    assert "way out: names the server lists under /v1/models" in text


@pytest.mark.parametrize(
    ("error", "way_out"),
    [
        ("HTTP 400 for 'a': Token id 600 is out of vocabulary", "--token-ids LOW:HIGH"),
        ("HTTP 400 for 'a': maximum context length is 2048 tokens", "--max-input-tokens"),
        ("HTTP 401 for 'a': Unauthorized", "--api-key"),
        ("HTTP 400 for 'a': unknown: ignore_eos", "--no-ignore-eos"),
        ("given up: no whole answer 3.0 s into the run", "--request-rate"),
    ],
)
def test_known_errors_have_their_way_out(error: str, way_out: str) -> None:
    """The option that mends it."""
    lines = beside(replace(FAILED, error=error)).splitlines()
    assert way_out in next(line for line in lines if "way out:" in line)


def test_many_adapters_of_one_error_are_not_all_named() -> None:
    """Five, and how many more."""
    rows = [replace(FAILED, adapter=f"x{n}") for n in range(7)]
    assert "adapters: x0, x1, x2, x3, x4 and 2 more" in beside(*rows)


def test_what_a_server_says_steers_no_terminal() -> None:
    """Escapes in an error are shown as such."""
    assert "\\x1b[2J" == printable("\x1b[2J")
    assert "\x1b" not in beside(replace(FAILED, error="HTTP 500 for 'a': \x1b[2J", adapter="\x1b"))


def test_a_run_without_any_request_can_be_printed() -> None:
    """Interrupted before the first."""
    assert "Successful requests:                     0" in "\n".join(result_lines(result_of()))
    assert "" == beside(window=replace(WINDOW, objectives={}))


def test_a_sweep_has_a_line_a_rate() -> None:
    """Rate, completed per second, failed, tokens per second, times, share in time, goodput."""
    (_, head, line) = sweep_lines([result_of(ANSWERED, FAILED)])
    assert "req/s done/s failed tok/s TTFT P50 TTFT P99 ITL P99 in SLO goodput" == " ".join(
        head.split()
    )
    assert "0.5 0.10 1 0.3 1000.0 1000.0 995.0 50.0% 0.10" == " ".join(line.split())


def test_a_sweep_without_objectives_has_dashes() -> None:
    """There is no share and no goodput."""
    line = sweep_lines([result_of(ANSWERED, window=replace(WINDOW, objectives={}))])[-1]
    assert ["-", "-"] == line.split()[-2:]
