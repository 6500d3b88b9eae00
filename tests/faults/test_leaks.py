"""What counts as a leak, and what a soak says of it."""

import dataclasses
import random
from typing import Any

import psutil
import pytest

from chameleon_lora.errors import ConfigError
from faults.leaks import LeakSample, sample, slope
from faults.soak import MIB, Soaked, report
from faults.trial import FaultRow

ROW = FaultRow("a fault", 6, 40, 0, 0, 0, 0, 0.1, is_clean=True, exit_status=None, said="")


def soaked(mib_an_hour: float, last: dict[str, Any] | None = None, row: FaultRow = ROW) -> Soaked:
    """An hour of 40 samples with noise of 5 MiB."""
    rng = random.Random(1)
    samples = [
        LeakSample(
            90.0 * i, rss_bytes, 100, 50, 0.0, 300, {"VLLM::Worker": rss_bytes, f"gone {i}": 1}
        )
        for i in range(40)
        for rss_bytes in [int((900 + mib_an_hour * i / 40 + rng.gauss(0, 5)) * MIB)]
    ]
    samples[-1] = dataclasses.replace(samples[-1], **(last or {}))
    return Soaked((row,) * 40, tuple(samples), warm_up=10)


def test_a_straight_line_has_its_own_slope() -> None:
    """2 a second are 7,200 an hour, with no doubt about it."""
    found = slope([float(t) for t in range(10)], [5.0 + 2.0 * t for t in range(10)])
    assert [7200.0] * 3 == pytest.approx([found.low, found.per_hour, found.high])
    assert found.is_growth


def test_too_few_samples_say_nothing() -> None:
    """An error, and what to do."""
    with pytest.raises(ConfigError, match="7 samples are too few"):
        slope([float(t) for t in range(7)], [1.0] * 7)


def test_noise_is_no_leak_and_growth_is() -> None:
    """200 MiB an hour stand out of 5 MiB of noise; none do not."""
    assert [] == soaked(0.0).troubles()
    (trouble,) = soaked(200.0).troubles()
    assert trouble.startswith("resident memory grows by +")


@pytest.mark.parametrize(
    ("last", "expected"),
    [
        ({"descriptors": 103}, "descriptors grew from 100 to 103"),
        ({"threads": 60}, "threads grew from 50 to 60"),
        ({"series": 400}, "series of metrics grew from 300 to 400"),
        ({"kv_usage": 0.25}, "25.0% of the KV cache is held by nobody"),
    ],
)
def test_what_is_left_over_at_the_end_is_a_leak(last: dict[str, Any], expected: str) -> None:
    """Descriptors, threads, series, KV memory."""
    assert [expected] == soaked(0.0, last).troubles()


@pytest.mark.parametrize("field", ["lost", "wrong", "disturbed", "unexpected"])
def test_one_request_that_ended_badly_is_enough(field: str) -> None:
    """Each such row is told."""
    change: dict[str, Any] = {field: 1}
    row = dataclasses.replace(ROW, **change)
    assert 40 == len(soaked(0.0, row=row).troubles())


def test_growth_before_every_fault_was_there_once_is_no_leak() -> None:
    """Crowds fill pools; what counts is whether a second one fills them further."""
    found = soaked(0.0)
    early = [dataclasses.replace(s, rss_bytes=s.rss_bytes // 2) for s in found.samples[:9]]
    assert [] == dataclasses.replace(found, samples=(*early, *found.samples[9:])).troubles()


def test_a_soak_that_ended_too_early_says_so() -> None:
    """Growth cannot be told from a few samples; what was lost before is told."""
    found = soaked(200.0, row=dataclasses.replace(ROW, lost=1))
    short = dataclasses.replace(found, rows=found.rows[:1], samples=found.samples[:12])
    assert ["a fault: los", "it ended too"] == [text[:12] for text in short.troubles()]


def test_the_report_adds_up() -> None:
    """Requests of all rows, and the growth with its interval, also of each process that lasted."""
    text = report(soaked(0.0))
    assert "requests              1600: lost 0, wrong 0, disturbed 0" in text
    assert "file descriptors      100 -> 100" in text
    assert 2 == text.count("MiB an hour [")
    assert "of VLLM::Worker" in text


def test_a_process_is_counted_with_its_children() -> None:
    """This one has memory, descriptors and a thread."""
    found = sample(psutil.Process(), 1.0, 0.5, 300)
    assert 10 * MIB < found.rss_bytes
    assert 3 <= found.descriptors
    assert 1 <= found.threads


def test_one_step_is_no_slope() -> None:
    """A pool that filled once, late, does not grow: most pairs of samples are alike."""
    found = slope([60.0 * i for i in range(20)], [900.0] * 17 + [1000.0] * 3)
    assert 0.0 == found.per_hour
    assert not found.is_growth
