"""How good is each keep rule? Run: `.venv/bin/python -m experiments.hit_rates`.

One stream of requests after another is served by the product's own cache, `Residency`, once with each
keep rule, and by caches that know more than any rule can. `clairvoyant` knows each adapter's next use:
the best of four orders, one for hits and one for bytes. `informed` knows each adapter's popularity at
the moment (of a trace: its number of requests) but not the future. `bound` is what no cache can pass:
the cheapest intervals between uses that the capacity can pay for, all moments pooled.

Streams: Poisson arrivals with power-law popularity inside each LoRA rank (paper §4), as it is and
shifting by one place a minute; and, with --trace, a ServeGen trace of JSON lines (timestamp in ms,
adapter, output_length). A load takes no time; a request holds its adapter for 20 ms a token. Where all
is in use, a request is a miss that runs beside the cache. Bytes are those of Llama-2-7B, all linear
layers, 16-bit.

Prints a Markdown table. `hits` is the share of requests whose adapter was there, `byte hits` the same
weighted by the adapter's bytes; `of best` divides by the clairvoyant's; `rank 128` is the share of
requests that loaded an adapter of the largest rank, `no room` of those that ran beside. Same options,
same table.
"""

import argparse
import gzip
import heapq
import json
import math
import random
from bisect import bisect_right
from collections import Counter, defaultdict
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from chameleon_lora.policy.memory.residency import Residency
from chameleon_lora.policy.memory.slots import SlotTable
from chameleon_lora.policy.plan import KvBlocks
from chameleon_lora.policy.request import Adapter, AdapterId
from chameleon_lora.policy.settings import HOST_ONLY, CacheSettings, KeepRule
from chameleon_lora.workload.lengths import AZURE_CONVERSATION, LengthScale, draw_lengths
from chameleon_lora.workload.popularity import draw_ranks, power_law_shares

RANKS = (8, 16, 32, 64, 128)
BYTES_PER_RANK = 2 * 32 * (4 * (4096 + 4096) + 3 * (4096 + 11008))  # Llama-2-7B: 38 MiB at rank 8
KV_BLOCK_BYTES = 8 << 20  # Llama-2-7B, 16 tokens, 16-bit
TOKEN_S = 0.02
RATE_PER_S = 5.5  # as in the Azure conversation trace of 2023


@dataclass(frozen=True, slots=True)
class Use:
    """One request: its adapter is needed from its arrival to its end."""

    adapter: int
    arrival_s: float
    end_s: float


@dataclass(frozen=True, slots=True)
class Stream:
    """Requests in order of arrival.

    Attributes:
        ranks: the LoRA rank of each adapter.
        popularity: of an adapter at a time; only ratios matter.
    """

    name: str
    ranks: tuple[int, ...]
    uses: tuple[Use, ...]
    popularity: Callable[[int, float], float]

    def nbytes(self, adapter: int) -> int:
        """Bytes of an adapter's weights."""
        return self.ranks[adapter] * BYTES_PER_RANK

    @property
    def all_bytes(self) -> int:
        """Bytes of all adapters."""
        return sum(self.ranks) * BYTES_PER_RANK

    def next_uses_s(self) -> list[float]:
        """For each request, when its adapter arrives next; infinity for never."""
        later: dict[int, float] = {}
        found = []
        for use in reversed(self.uses):
            found.append(later.get(use.adapter, math.inf))
            later[use.adapter] = use.arrival_s
        return found[::-1]


@dataclass(slots=True)
class Score:
    """What a cache made of a stream: shares of requests, and of their adapters' bytes, in [0, 1].

    Attributes:
        loaded_mb: a request, in 10^6 bytes.
        large_misses: share of requests that loaded an adapter of the largest LoRA rank.
        beside: share of requests that found all memory in use.
    """

    hits: float
    byte_hits: float
    loaded_mb: float
    large_misses: float
    beside: float


def power_law_stream(
    adapters: int, alpha: float, requests: int, seed: int, shift_s: float = math.inf
) -> Stream:
    """Poisson arrivals; LoRA ranks equally popular, rank^-alpha among the adapters of one of them.

    Each `shift_s` all adapters move up one place of popularity, and the first becomes the last.
    """
    rng = random.Random(f"{seed}:{alpha}")
    each = adapters // len(RANKS)
    ranks = tuple(RANKS[number % len(RANKS)] for number in range(each * len(RANKS)))
    shares = power_law_shares(each, alpha)
    places = draw_ranks(shares, requests, rng)
    lengths = draw_lengths(AZURE_CONVERSATION, LengthScale(), requests, rng)
    now_s, uses = 0.0, []
    for place, (_, tokens) in zip(places, lengths, strict=True):
        now_s += rng.expovariate(RATE_PER_S)
        shifted = (place + int(now_s / shift_s)) % each
        adapter = shifted * len(RANKS) + rng.randrange(len(RANKS))
        uses.append(Use(adapter, now_s, now_s + tokens * TOKEN_S))

    def popularity(adapter: int, now_s: float) -> float:
        return shares[(adapter // len(RANKS) - int(now_s / shift_s)) % each]

    name = f"power law {alpha}" + (", shifting" if shift_s < math.inf else "")
    return Stream(name, ranks, tuple(uses), popularity)


def trace_stream(path: Path) -> Stream:
    """A ServeGen trace; its adapters take the LoRA ranks in turn, by their number."""
    opener = gzip.open if path.suffix == ".gz" else open
    with opener(path, "rt", encoding="utf8") as lines:
        rows = [json.loads(line) for line in lines]
    known = {name: n for n, name in enumerate(sorted({row["adapter"] for row in rows}))}
    uses = [
        Use(known[row["adapter"]], start_s, start_s + row["output_length"] * TOKEN_S)
        for row in rows
        for start_s in [row["timestamp"] / 1000]
    ]
    ranks = tuple(RANKS[n % len(RANKS)] for n in range(len(known)))
    counts = Counter(use.adapter for use in uses)
    return Stream("ServeGen", ranks, tuple(uses), lambda adapter, _: counts[adapter])


class ProductCache:
    """`Residency` with as many slots as adapters, so that host memory alone decides."""

    def __init__(self, stream: Stream, settings: CacheSettings, seed: int) -> None:
        slots = SlotTable(len(stream.ranks))
        self._residency = Residency(settings, slots, seed, HOST_ONLY, KvBlocks(0, 0))
        self._entries = [
            self._residency.register(Adapter(AdapterId(n), f"a{n}", rank, stream.nbytes(n)))
            for n, rank in enumerate(stream.ranks)
        ]
        self._arrivals = 0

    def begin(self, adapter: int, now_s: float) -> tuple[bool, bool]:
        """A request arrives: was its adapter there, and is it now?"""
        self._arrivals += 1
        entry = self._entries[adapter]
        is_hit = entry.is_in_host
        if not is_hit:
            if self._residency.try_load(entry, self._arrivals, now_s) is None:
                return False, False
            self._residency.loaded(entry, entry.adapter.nbytes, entry.adapter.rank)
            self._residency.activate(entry, adapter)
        self._residency.queue(entry, 1)
        self._residency.start(entry, now_s)
        return is_hit, True

    def end(self, adapter: int) -> None:
        """A request that held the adapter ended."""
        self._residency.stop(self._entries[adapter])


class KnowingCache:
    """A cache whose keep scores are told from outside; it looks at all adapters.

    `worth(adapter, now_s)` is higher for what is kept longer.
    """

    def __init__(self, stream: Stream, capacity: int, worth: Callable[[int, float], float]) -> None:
        self._nbytes = [stream.nbytes(n) for n in range(len(stream.ranks))]
        self._free, self._worth = capacity, worth
        self._running = dict.fromkeys(range(len(stream.ranks)), 0)
        self._held: set[int] = set()

    def begin(self, adapter: int, now_s: float) -> tuple[bool, bool]:
        """A request arrives: was its adapter there, and is it now?"""
        is_hit = adapter in self._held
        if not is_hit and not self._load(adapter, now_s):
            return False, False
        self._running[adapter] += 1
        return is_hit, True

    def end(self, adapter: int) -> None:
        """A request that held the adapter ended."""
        self._running[adapter] -= 1

    def _load(self, adapter: int, now_s: float) -> bool:
        idle = [n for n in self._held if not self._running[n]]
        if self._free + sum(self._nbytes[n] for n in idle) < self._nbytes[adapter]:
            return False
        idle.sort(key=lambda n: (self._worth(n, now_s), n), reverse=True)
        while self._free < self._nbytes[adapter]:
            victim = idle.pop()
            self._held.remove(victim)
            self._free += self._nbytes[victim]
        self._held.add(adapter)
        self._free -= self._nbytes[adapter]
        return True


def serve(stream: Stream, cache: ProductCache | KnowingCache) -> Score:
    """Send the stream through a cache."""
    ends: list[tuple[float, int]] = []
    hits = byte_hits = all_bytes = large_misses = beside = 0
    for use in stream.uses:
        while ends and ends[0][0] <= use.arrival_s:
            cache.end(heapq.heappop(ends)[1])
        nbytes = stream.nbytes(use.adapter)
        is_hit, is_held = cache.begin(use.adapter, use.arrival_s)
        if is_held:
            heapq.heappush(ends, (use.end_s, use.adapter))
        hits += is_hit
        byte_hits += nbytes * is_hit
        all_bytes += nbytes
        beside += not is_held
        large_misses += not is_hit and stream.ranks[use.adapter] == max(RANKS)
    count = len(stream.uses)
    loaded_mb = (all_bytes - byte_hits) / 1e6 / count
    return Score(
        hits / count, byte_hits / all_bytes, loaded_mb, large_misses / count, beside / count
    )


def clairvoyant(stream: Stream, capacity: int) -> tuple[Score, Score]:
    """The best for hits and the best for bytes, of four ways to use the time of the next use."""
    arrivals: dict[int, list[float]] = defaultdict(list)
    for use in stream.uses:
        arrivals[use.adapter].append(use.arrival_s)

    def wait_s(adapter: int, now_s: float) -> float:
        times_s = arrivals[adapter]
        place = bisect_right(times_s, now_s)
        return times_s[place] - now_s if place < len(times_s) else math.inf

    def by(power: float) -> Score:
        def worth(n: int, now_s: float) -> float:
            return -wait_s(n, now_s) * math.pow(stream.nbytes(n), power)

        return serve(stream, KnowingCache(stream, capacity, worth))

    found = [by(power) for power in (0.0, 0.25, 0.5, 1.0)]
    return max(found, key=lambda s: s.hits), max(found, key=lambda s: s.byte_hits)


def informed(stream: Stream, capacity: int) -> tuple[Score, Score]:
    """The best for hits and the best for bytes, when the popularity is known but not the future."""

    def density(adapter: int, now_s: float) -> float:
        return stream.popularity(adapter, now_s) / stream.nbytes(adapter)

    dense = KnowingCache(stream, capacity, density)
    often = KnowingCache(stream, capacity, stream.popularity)
    return serve(stream, dense), serve(stream, often)


def bound(stream: Stream, capacity: int) -> tuple[float, float]:
    """Shares of hits and of byte hits that no cache can pass.

    A hit keeps the adapter's bytes from one arrival to the next. All hits together may take no more
    byte-seconds than the cache has; the cheapest are counted first, the last one in part.
    """
    gaps = [
        (next_s - use.arrival_s, stream.nbytes(use.adapter))
        for use, next_s in zip(stream.uses, stream.next_uses_s(), strict=True)
        if next_s < math.inf
    ]
    supply = capacity * (stream.uses[-1].arrival_s - stream.uses[0].arrival_s)
    hits = _bought(sorted((gap_s * nbytes, 1.0) for gap_s, nbytes in gaps), supply)
    by_gap = sorted(gaps)
    byte_hits = _bought([(gap_s * nbytes, float(nbytes)) for gap_s, nbytes in by_gap], supply)
    return hits / len(stream.uses), byte_hits / sum(stream.nbytes(u.adapter) for u in stream.uses)


def _bought(offers: Sequence[tuple[float, float]], supply: float) -> float:
    """The value of the offers (price, value), in their order, that the supply pays for."""
    value = 0.0
    for price, worth in offers:
        if price >= supply:
            return value + (worth * supply / price if price else 0.0)
        supply -= price
        value += worth
    return value


def rows(stream: Stream, capacity: int, windows_s: Sequence[float], seed: int) -> Iterator[str]:
    """The table's rows for one stream and one capacity: what can be had, then each rule."""
    place = f"| {stream.name} | {capacity / stream.all_bytes:.0%} "
    most = bound(stream, capacity)
    best_hits, best_bytes = clairvoyant(stream, capacity)

    def row(name: str, for_hits: Score, for_bytes: Score) -> str:
        return (
            f"{place}| {name} "
            f"| {for_hits.hits:.3f} | {for_hits.hits / best_hits.hits:.2f} "
            f"| {for_bytes.byte_hits:.3f} | {for_bytes.byte_hits / best_bytes.byte_hits:.2f} "
            f"| {for_bytes.loaded_mb:.0f} | {for_hits.large_misses:.3f} | {for_hits.beside:.3f} |"
        )

    yield f"{place}| bound | {most[0]:.3f} | | {most[1]:.3f} | | | | |"
    yield row("clairvoyant", best_hits, best_bytes)
    yield row("informed", *informed(stream, capacity))
    for rule in KeepRule:
        # One window is all that recency needs.
        for window_s in windows_s[:1] if rule is KeepRule.LRU else windows_s:
            settings = CacheSettings(keep=rule, host_bytes=capacity, window_s=window_s)
            score = serve(stream, ProductCache(stream, settings, seed))
            name = rule.value if len(windows_s) == 1 else f"{rule.value} {window_s:g} s"
            yield row(name, score, score)


def main() -> None:
    """Make the streams, serve them, print."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--adapters", type=int, default=200)
    parser.add_argument("--requests", type=int, default=20_000)
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.9, 1.0, 1.2])
    parser.add_argument("--share", type=float, nargs="+", default=[0.10, 0.25, 0.50])
    parser.add_argument("--window-s", type=float, nargs="+", default=[300.0])
    parser.add_argument("--shift-s", type=float, default=60.0, help="of the stream that shifts")
    parser.add_argument("--trace", type=Path, help="a ServeGen trace, .jsonl or .jsonl.gz")
    parser.add_argument("--seed", type=int, default=1)
    given = parser.parse_args()
    count, requests, seed = given.adapters, given.requests, given.seed
    streams = [power_law_stream(count, alpha, requests, seed) for alpha in given.alpha]
    streams.append(power_law_stream(count, given.alpha[0], requests, seed, given.shift_s))
    if given.trace is not None:
        streams.append(trace_stream(given.trace))
    for stream in streams:
        sizes_mb = [f"{stream.all_bytes * share / KV_BLOCK_BYTES:.0f}" for share in given.share]
        print(
            f"{stream.name}: {len(stream.uses)} requests, {len(stream.ranks)} adapters of "
            f"{stream.all_bytes / 1e9:.1f} GB; capacities in KV blocks of 8 MiB: "
            f"{', '.join(sizes_mb)}"
        )
    print(
        "\n| stream | capacity | cache | hits | of best | byte hits | of best | MB a request | rank 128 | no room |"
    )
    print("| --- | ---: | --- | ---: | ---: | ---: | ---: | ---: | ---: | ---: |")
    for stream in streams:
        for share in given.share:
            capacity = int(share * stream.all_bytes)
            print(*rows(stream, capacity, given.window_s, seed), sep="\n", flush=True)


if __name__ == "__main__":
    main()
