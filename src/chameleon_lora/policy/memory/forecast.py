"""For which adapters is a request to come soon? A histogram of the gaps between its requests says so.

The histogram policy of Shahrad et al., "Serverless in the Wild" (ATC 2020), which the paper takes
over for requests not yet seen (§4.2.3). Where the histogram tells nothing, nothing is expected and
the ordinary rules decide. ADR 0019 has the bins, the test, and what differs.
"""

import heapq
import math
from bisect import bisect_left
from dataclasses import dataclass, field
from itertools import accumulate

from chameleon_lora.errors import ConfigError
from chameleon_lora.policy.request import AdapterId

SHORTEST_S = 2.0**-7  # 8 ms; the adapter cannot have gone in between, so this is no gap
OCTAVES = 18
LONGEST_S = SHORTEST_S * 2**OCTAVES  # 34 minutes
PER_OCTAVE = 8  # bins, so that one is 6 to 12 % wide
BINS = OCTAVES * PER_OCTAVE
MOST_VARIATION = 11.0  # of counts in so many bins: sqrt(BINS - 1), rounded down
REMEMBERED = 127  # gaps after which all counts are halved: a count fits a byte, and habits change
MARGIN = 0.1  # a window begins that much earlier and ends that much later than its bins say
SLACK = 16  # stale items in the heap that are not worth a clean-up


@dataclass(frozen=True, slots=True)
class ForecastSettings:
    """When an adapter's next request is expected.

    Attributes:
        head_share: the adapter is expected once this share of its gaps between requests is over.
        tail_share: it is expected no longer once this share of its gaps is over.
        least_gaps: with fewer gaps seen nothing is expected.
        least_variation: nor with a lower coefficient of variation of the counts in the bins: above
            11 all gaps are alike, at 2 within a factor of 10 or so, at 1.5 random; 0 takes all.
    """

    head_share: float = 0.05
    tail_share: float = 0.99
    least_gaps: int = 10
    least_variation: float = 2.0

    def __post_init__(self) -> None:
        if not 0.0 <= self.head_share <= self.tail_share <= 1.0:
            raise ConfigError(
                f"prefetch.forecast.head_share is {self.head_share} and tail_share "
                f"{self.tail_share}; use shares from 0 to 1, the head's no larger than the tail's"
            )
        if not 2 <= self.least_gaps <= REMEMBERED // 2:
            raise ConfigError(
                f"prefetch.forecast.least_gaps is {self.least_gaps}; use 2 to {REMEMBERED // 2}"
            )
        if not 0.0 <= self.least_variation <= MOST_VARIATION:
            raise ConfigError(
                f"prefetch.forecast.least_variation is {self.least_variation}; use 0 (any) to "
                f"{MOST_VARIATION:g} (gaps all alike)"
            )


@dataclass(frozen=True, slots=True)
class Outlook:
    """From now on a request of the adapter is expected, or no longer."""

    adapter_id: AdapterId
    is_expected: bool


@dataclass(frozen=True, slots=True)
class UseWindow:
    """When a request is expected, in seconds after the one before: [start_s, end_s)."""

    start_s: float
    end_s: float


@dataclass(slots=True)
class GapHistogram:
    """The gaps between one adapter's requests, in bins of eight to an octave.

    Invariant: `counted` is the sum of all counts and with `longer` at most REMEMBERED; `twins` is
    the number of pairs of gaps in the same bin.
    """

    counts: bytearray = field(default_factory=lambda: bytearray(BINS))
    counted: int = 0
    longer: int = 0  # than the last bin
    twins: int = 0

    def add(self, gap_s: float) -> None:
        """Count a gap; one shorter than the first bin is none."""
        if gap_s < SHORTEST_S:
            return
        if gap_s >= LONGEST_S:
            self.longer += 1
        else:
            place = _bin_of(gap_s)
            self.twins += self.counts[place]
            self.counts[place] += 1
            self.counted += 1
        if self.counted + self.longer == REMEMBERED:
            self._halve()

    def is_telling(self, settings: ForecastSettings) -> bool:
        """Whether there are enough gaps, at most half of them too long, and most near each other."""
        total = self.counted
        if total < settings.least_gaps or self.longer > total:
            return False
        alike = self.twins / (total * (total - 1) / 2)  # expected to be sum p^2, for any total
        return BINS * alike - 1.0 >= settings.least_variation**2

    def window(self, settings: ForecastSettings) -> UseWindow:
        """From the bin of the head percentile to the end of the tail's, with a margin.

        There must be a gap. O(bins).
        """
        first = BINS - len(self.counts.lstrip(b"\0"))
        upto = list(accumulate(self.counts.strip(b"\0")))  # few bins: the histogram is telling
        head, tail = (
            first + bisect_left(upto, max(1, math.ceil(share * self.counted)))
            for share in (settings.head_share, settings.tail_share)
        )
        return UseWindow(_edge_s(head) * (1.0 - MARGIN), _edge_s(tail + 1) * (1.0 + MARGIN))

    def _halve(self) -> None:
        self.counts = bytearray(count >> 1 for count in self.counts)
        self.counted, self.longer = sum(self.counts), self.longer >> 1
        self.twins = sum(count * (count - 1) // 2 for count in self.counts)


@dataclass(slots=True)
class _Habit:
    """What is known of one adapter's requests, and what comes next if there are no more."""

    last_s: float
    gaps: GapHistogram = field(default_factory=GapHistogram)
    due_s: float | None = None
    end_s: float = 0.0
    is_expected: bool = False


class Forecast:
    """Which adapters are expected to be asked for soon. Owner: the prefetcher, if it predicts.

    Invariants: an adapter has one next time at most, which is in the heap; the heap has no more than
    SLACK items beside two for each adapter. Memory is under a kilobyte for each.
    """

    def __init__(self, settings: ForecastSettings) -> None:
        self._settings = settings
        self._habits: dict[AdapterId, _Habit] = {}
        self._next: list[tuple[float, AdapterId]] = []  # heap; may hold times no longer due

    def arrived(self, adapter_id: AdapterId, now_s: float) -> None:
        """A request of the adapter came: it is not expected until its next window begins."""
        habit = self._habits.get(adapter_id)
        if habit is None:
            self._habits[adapter_id] = _Habit(now_s)
            return
        habit.gaps.add(now_s - habit.last_s)
        habit.last_s, habit.is_expected, habit.due_s = now_s, False, None
        if habit.gaps.is_telling(self._settings):
            window = habit.gaps.window(self._settings)
            habit.end_s = now_s + window.end_s
            self._plan(adapter_id, habit, now_s + window.start_s)

    def due(self, now_s: float) -> list[Outlook]:
        """What is expected from now on, and what no longer, in order of time; each told once.

        A window that is over already is left out. O(log n) for each.
        """
        outlooks: list[Outlook] = []
        while self._next and self._next[0][0] <= now_s:
            due_s, adapter_id = heapq.heappop(self._next)
            habit = self._habits.get(adapter_id)
            if habit is None or habit.due_s != due_s:
                continue
            habit.due_s = None
            if habit.is_expected:
                habit.is_expected = False
                outlooks.append(Outlook(adapter_id, is_expected=False))
            elif now_s < habit.end_s:
                habit.is_expected = True
                self._plan(adapter_id, habit, habit.end_s)
                outlooks.append(Outlook(adapter_id, is_expected=True))
        return outlooks

    def next_s(self) -> float:
        """When `due` has something to tell at the earliest; infinity for never."""
        return self._next[0][0] if self._next else math.inf

    def forget(self, adapter_id: AdapterId) -> None:
        """Afterwards nothing is known of the adapter."""
        self._habits.pop(adapter_id, None)

    def _plan(self, adapter_id: AdapterId, habit: _Habit, due_s: float) -> None:
        habit.due_s = due_s
        heapq.heappush(self._next, (due_s, adapter_id))
        if len(self._next) > 2 * len(self._habits) + SLACK:
            planned = ((known.due_s, known_id) for known_id, known in self._habits.items())
            self._next = [(at_s, known_id) for at_s, known_id in planned if at_s is not None]
            heapq.heapify(self._next)


def _bin_of(gap_s: float) -> int:
    """The bin of a gap within SHORTEST_S and LONGEST_S; exact, for edges are sums of powers of 2."""
    mantissa, octave = math.frexp(
        gap_s / SHORTEST_S
    )  # gap = mantissa * 2^octave, mantissa in [1/2, 1)
    return (octave - 1) * PER_OCTAVE + int((2.0 * mantissa - 1.0) * PER_OCTAVE)


def _edge_s(place: int) -> float:
    """Where a bin begins."""
    octave, part = divmod(place, PER_OCTAVE)
    return SHORTEST_S * 2.0**octave * (1.0 + part / PER_OCTAVE)
