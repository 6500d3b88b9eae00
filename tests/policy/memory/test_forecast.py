"""For which adapters a request is expected, from the gaps between their requests."""

import math
import random
from collections.abc import Callable, Sequence
from dataclasses import replace
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.memory.forecast import (
    BINS,
    LONGEST_S,
    REMEMBERED,
    SHORTEST_S,
    SLACK,
    Forecast,
    ForecastSettings,
    GapHistogram,
    Outlook,
    UseWindow,
    _bin_of,
    _edge_s,
)
from chameleon_lora.policy.request import AdapterId

ONE = AdapterId(1)
SETTINGS = ForecastSettings()
EAGER = ForecastSettings(least_gaps=2, least_variation=0.0)
FOREVER_S = 1e9


def histogram(gaps_s: Sequence[float]) -> GapHistogram:
    """The gaps, counted."""
    counted = GapHistogram()
    for gap_s in gaps_s:
        counted.add(gap_s)
    return counted


def after(gaps_s: Sequence[float], settings: ForecastSettings = SETTINGS) -> tuple[Forecast, float]:
    """A forecast that saw one adapter's requests at these distances, and when the last one came."""
    forecast, now_s = Forecast(settings), 0.0
    forecast.arrived(ONE, now_s)
    for gap_s in gaps_s:
        now_s += gap_s
        forecast.due(now_s)
        forecast.arrived(ONE, now_s)
    return forecast, now_s


def next_window(gaps_s: Sequence[float]) -> UseWindow | None:
    """The window told after these gaps, in seconds after the last request."""
    gaps = histogram(gaps_s)
    return gaps.window(SETTINGS) if gaps.is_telling(SETTINGS) else None


def draws(draw: Callable[[random.Random], float], count: int) -> list[float]:
    """So many gaps at random."""
    rng = random.Random(7)
    return [draw(rng) for _ in range(count)]


class TestBins:
    def test_they_leave_no_hole(self) -> None:
        """Each edge belongs to the bin it begins, and the number just below to the one before."""
        for place in range(BINS):
            edge_s = _edge_s(place)
            assert place == _bin_of(edge_s)
            assert place == _bin_of(_edge_s(place + 1) * (1.0 - 1e-15))

    def test_they_cover_milliseconds_to_half_an_hour(self) -> None:
        """From 8 ms to 34 minutes, each 6 to 12.5 % wide."""
        assert (SHORTEST_S, LONGEST_S) == (_edge_s(0), _edge_s(BINS))
        assert SHORTEST_S < 0.01
        assert LONGEST_S > 1800.0
        widths = [_edge_s(place + 1) / _edge_s(place) - 1.0 for place in range(BINS)]
        assert 0.06 < min(widths)
        assert max(widths) <= 0.125


class TestWindow:
    @pytest.mark.parametrize("period_s", [0.05, 1.0, 10.0, 11.2, 777.0])
    def test_a_regular_period_is_met(self, period_s: float) -> None:
        """The next request comes in the window, at most a quarter of a period after it begins."""
        window = next_window([period_s] * 12)
        assert window is not None
        assert 0.75 * period_s < window.start_s <= 0.9 * period_s
        assert 1.1 * period_s <= window.end_s < 1.3 * period_s

    def test_a_period_with_jitter_is_met(self) -> None:
        """With 10 % of jitter 95 % of the next hundred requests come in the window."""
        gaps_s = draws(lambda rng: rng.gauss(10.0, 1.0), 200)
        window = next_window(gaps_s[:100])
        assert window is not None
        assert window.start_s > 5.0
        hits = sum(window.start_s <= gap_s < window.end_s for gap_s in gaps_s[100:])
        assert hits >= 95

    def test_requests_in_bursts_are_expected_a_burst_later(self) -> None:
        """Five at once each minute: gaps of no length are no gaps, so the next is in a minute."""
        window = next_window([0.0, 0.001, 0.002, 0.0, 60.0] * 12)
        assert window is not None
        assert 45.0 < window.start_s < 60.0 < window.end_s < 80.0

    def test_two_habits_are_kept_from_the_short_to_the_long(self) -> None:
        """With gaps of 1 s and of 20 s, half and half, the adapter is expected from 1 to 20 s."""
        window = next_window([1.0, 20.0] * 12)
        assert window is not None
        assert window.start_s < 1.0
        assert window.end_s > 20.0

    def test_shares_cut_what_is_rare(self) -> None:
        """One gap in fifty below or above the others is left out by a head and a tail of 4 %."""
        gaps = histogram([0.1] + [10.0] * 48 + [500.0])
        settings = replace(SETTINGS, head_share=0.04, tail_share=0.96)
        assert histogram([10.0] * 50).window(SETTINGS) == gaps.window(settings)


class TestNothingIsToldBy:
    def test_too_few_gaps(self) -> None:
        """Nine are too few, ten are enough."""
        assert next_window([10.0] * 9) is None
        assert next_window([10.0] * 10) is not None

    def test_gaps_out_of_range(self) -> None:
        """More than half above half an hour: what is left of the histogram is no habit."""
        assert next_window([10.0] * 12 + [4000.0] * 12) is not None
        assert next_window([10.0] * 12 + [4000.0] * 13) is None

    def test_requests_at_random(self) -> None:
        """A Poisson process has no memory: the time since the last request foretells nothing."""
        assert next_window(draws(lambda rng: rng.expovariate(0.1), 200)) is None

    def test_gaps_of_all_lengths(self) -> None:
        """From 10 ms to 17 minutes alike."""
        assert next_window(draws(lambda rng: 10.0 ** rng.uniform(-2.0, 3.0), 200)) is None

    def test_few_gaps_at_random_that_seem_alike(self) -> None:
        """The test is unbiased: of small samples of a Poisson process few pass, too."""
        rng, passed = random.Random(3), 0
        for _ in range(200):
            passed += next_window([rng.expovariate(0.1) for _ in range(20)]) is not None
        assert passed < 40


class TestDue:
    def test_expected_from_the_head_on_until_the_tail(self) -> None:
        """With a period of 10 s: from 9 s after the last request, until 12.1 s after it."""
        forecast, last_s = after([10.0] * 12)
        assert [] == forecast.due(last_s + 8.9)
        assert [Outlook(ONE, is_expected=True)] == forecast.due(last_s + 9.0)
        assert [] == forecast.due(last_s + 12.0)
        assert [Outlook(ONE, is_expected=False)] == forecast.due(last_s + 12.2)
        assert [] == forecast.due(FOREVER_S)

    def test_a_request_ends_the_window_and_plans_the_next(self) -> None:
        """After a request in the window its end is not told; 9 s later the next one begins."""
        forecast, last_s = after([10.0] * 12)
        forecast.due(last_s + 9.5)
        forecast.arrived(ONE, last_s + 10.0)
        assert [] == forecast.due(last_s + 18.9)
        assert [Outlook(ONE, is_expected=True)] == forecast.due(last_s + 19.0)

    def test_a_window_nobody_looked_at_is_left_out(self) -> None:
        """An engine that slept through it is told neither of its beginning nor of its end."""
        forecast, last_s = after([10.0] * 12)
        assert [] == forecast.due(last_s + 13.0)

    def test_in_order_of_time_then_of_id(self) -> None:
        """Windows that begin first are told first."""
        forecast = Forecast(EAGER)
        for turn in range(4):
            for number, period_s in ((3, 8.0), (2, 1.0), (1, 8.0)):
                forecast.arrived(AdapterId(number), turn * period_s)
        told = forecast.due(3 * 1.0 + 0.95) + forecast.due(3 * 8.0 + 7.5)
        assert [(2, True), (2, False), (1, True), (3, True)] == [
            (outlook.adapter_id, outlook.is_expected) for outlook in told
        ]

    def test_a_forgotten_adapter_is_not_told(self) -> None:
        """And it begins anew when its id comes again."""
        forecast, last_s = after([10.0] * 12)
        forecast.forget(ONE)
        forecast.forget(AdapterId(99))
        forecast.arrived(ONE, last_s + 5.0)
        assert [] == forecast.due(FOREVER_S)

    def test_plans_that_requests_overtook_are_cleaned_up(self) -> None:
        """Two adapters asked for each second, and nobody looks: their last plans stand all the same."""
        forecast = Forecast(SETTINGS)
        for turn in range(200):
            for number in (1, 2):
                forecast.arrived(AdapterId(number), float(turn))
            due = {(h.due_s, i) for i, h in forecast._habits.items() if h.due_s is not None}
            assert due <= set(forecast._next)
        assert len(forecast._next) <= 2 * 2 + SLACK
        told = [outlook.adapter_id for outlook in forecast.due(199.95)]
        assert [1, 2] == told

    def test_a_new_habit_takes_the_place_of_the_old(self) -> None:
        """After 400 gaps of 1 s, 400 of 100 s: nothing is left of the former."""
        forecast, last_s = after([1.0] * 400 + [100.0] * 400)
        assert [] == forecast.due(last_s + 80.0)
        assert [Outlook(ONE, is_expected=True)] == forecast.due(last_s + 100.0)


class TestSettings:
    @pytest.mark.parametrize(
        ("fields", "message"),
        [
            ({"head_share": 0.6, "tail_share": 0.5}, "head_share is 0.6 and tail_share 0.5"),
            ({"head_share": -0.1}, "head_share is -0.1"),
            ({"tail_share": 1.5}, "tail_share 1.5; use shares from 0 to 1"),
            ({"tail_share": float("nan")}, "tail_share nan"),
            ({"least_gaps": 1}, "least_gaps is 1; use 2 to 63"),
            ({"least_gaps": 64}, "least_gaps is 64; use 2 to 63"),
            ({"least_variation": -1.0}, "least_variation is -1.0; use 0"),
            ({"least_variation": 12.0}, "least_variation is 12.0; use 0 .any. to 11"),
        ],
    )
    def test_out_of_range_is_refused(self, fields: dict[str, Any], message: str) -> None:
        """The message names the value and what is allowed."""
        with pytest.raises(ConfigError, match=message):
            replace(SETTINGS, **fields)

    def test_the_longest_histogram_has_the_most_variation(self) -> None:
        """Gaps all alike pass the strictest test there is, before and after counts are halved."""
        strictest = replace(SETTINGS, least_variation=11.0)
        for count in (10, REMEMBERED - 1, REMEMBERED, 2 * REMEMBERED):
            assert histogram([10.0] * count).is_telling(strictest)


GAPS_S = st.sampled_from((0.0, 0.001, 0.3, 2.0, 2.1, 60.0, 5000.0)) | st.floats(0.0, 3000.0)
EVENTS = st.lists(st.tuples(st.integers(0, 4), GAPS_S, st.booleans()), max_size=120)


@given(EVENTS)
def test_counts_are_those_of_the_gaps(events: list[tuple[int, float, bool]]) -> None:
    """Sums and pairs kept by the way are those of the counts; each count fits its byte."""
    counted = GapHistogram()
    for number, gap_s, _ in events:
        for _ in range(1 + 20 * number):
            counted.add(gap_s)
            assert counted.counted + counted.longer < REMEMBERED
        assert sum(counted.counts) == counted.counted
        assert sum(count * (count - 1) // 2 for count in counted.counts) == counted.twins
    assert BINS == len(counted.counts)


@given(EVENTS)
def test_each_change_is_told_once(events: list[tuple[int, float, bool]]) -> None:
    """Between two requests an adapter is told as expected at most once, and then at most once as not.

    The heap never holds more than two items an adapter and some.
    """
    forecast, now_s = Forecast(EAGER), 0.0
    told: dict[int, list[bool]] = {}
    for number, gap_s, is_asked in events:
        now_s += gap_s
        if is_asked:
            for outlook in forecast.due(now_s):
                told.setdefault(outlook.adapter_id, []).append(outlook.is_expected)
        forecast.arrived(AdapterId(number), now_s)
        told[number] = []
        assert len(forecast._next) <= 2 * len(forecast._habits) + SLACK
        assert all(changes in ([], [True], [True, False]) for changes in told.values())
        assert {i for i, changes in told.items() if changes == [True]} == {
            i for i, habit in forecast._habits.items() if habit.is_expected
        }


@given(EVENTS)
def test_every_adapter_has_its_next_time_in_the_heap(events: list[tuple[int, float, bool]]) -> None:
    """Nobody's window is lost when stale items are cleaned up; and in the end nobody is expected."""
    forecast, now_s = Forecast(EAGER), 0.0
    for number, gap_s, is_asked in events:
        now_s += gap_s
        if is_asked:
            forecast.due(now_s)
        for _ in range(8):
            forecast.arrived(AdapterId(number), now_s)
        planned = {(h.due_s, i) for i, h in forecast._habits.items() if h.due_s is not None}
        assert planned <= set(forecast._next)
    forecast.due(now_s + FOREVER_S)
    assert [] == forecast._next
    assert not any(habit.is_expected for habit in forecast._habits.values())


@given(EVENTS)
def test_windows_are_in_order(events: list[tuple[int, float, bool]]) -> None:
    """A window ends after it begins, and a larger tail never ends it earlier."""
    counted = histogram([gap_s for _, gap_s, _ in events])
    if counted.counted:
        windows = [
            counted.window(replace(EAGER, head_share=0.0, tail_share=share))
            for share in (0.0, 0.3, 0.9, 1.0)
        ]
        assert all(0.0 < window.start_s < window.end_s for window in windows)
        assert all(one.end_s <= other.end_s for one, other in pairwise(windows))


def test_next_time_is_the_earliest_of_all() -> None:
    """Of two adapters with habits that whose window begins first; with none there is no next time."""
    forecast = Forecast(EAGER)
    assert math.inf == forecast.next_s()
    rare = [(100.0 * number, AdapterId(1)) for number in range(4)]
    often = [(280.0 + 10.0 * number, AdapterId(2)) for number in range(4)]
    for now_s, adapter_id in sorted(rare + often):
        forecast.due(now_s)
        forecast.arrived(adapter_id, now_s)
    while not (told := forecast.due(at_s := forecast.next_s())):
        pass  # windows that later requests have put off
    assert [Outlook(AdapterId(2), is_expected=True)] == told
    assert 310.0 < at_s < 325.0
