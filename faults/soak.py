"""Load for a long time, with one random fault after the other, and what leaked meanwhile."""

import asyncio
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from faults.client import now_s
from faults.context import FaultContext
from faults.fault import InflictedFault
from faults.leaks import LEAST_SAMPLES, LeakSample, Slope, sample, slope
from faults.trial import FaultRow, try_fault

MIB = 1 << 20
SLACK = 2  # descriptors and threads may differ by so many: connections that just close
SERIES_SLACK = 64  # vLLM's gauge of adapters has as many, more or fewer by what ran last
TRIM_S = 2.5  # each process of the server looks once a second


@dataclass(frozen=True, slots=True)
class Soaked:
    """What a soak showed.

    Attributes:
        samples: one after each row's fault, with the server idle and its free memory given back.
        warm_up: how many of them do not count for growth: pools and caches fill for some minutes, and
            until every kind of fault was there once.
    """

    rows: tuple[FaultRow, ...]
    samples: tuple[LeakSample, ...]
    warm_up: int

    @property
    def settled(self) -> tuple[LeakSample, ...]:
        """Those that count, the last of the warm-up among them."""
        return self.samples[max(0, self.warm_up - 1) :]

    @property
    def memory(self) -> Slope | None:
        """Growth of resident memory, MiB an hour; None if the soak ended too early to tell."""
        if len(self.settled) < LEAST_SAMPLES:
            return None
        return self._slope_of([sample.rss_bytes for sample in self.settled])

    @property
    def memory_by_process(self) -> dict[str, Slope]:
        """The same for each process that was there all the time."""
        lasting = set.intersection(*(set(sample.rss_by_process) for sample in self.settled))
        return {
            title: self._slope_of([sample.rss_by_process[title] for sample in self.settled])
            for title in sorted(lasting)
        }

    def _slope_of(self, values_bytes: Sequence[int]) -> Slope:
        at_s = [sample.at_s for sample in self.settled]
        return slope(at_s, [value / MIB for value in values_bytes])

    def troubles(self) -> list[str]:
        """What is wrong; empty if nothing is."""
        found = [
            f"{row.fault}: lost {row.lost}, wrong {row.wrong}, disturbed {row.disturbed}, "
            f"unexpected {row.unexpected}; {row.said}"
            for row in self.rows
            if row.lost or row.wrong or row.disturbed or row.unexpected or not row.is_clean
        ]
        if self.memory is None:
            return [*found, "it ended too early to tell growth from noise"]
        if self.memory.is_growth:
            found.append(f"resident memory grows by {_shown(self.memory)}")
        first, last = self.settled[0], self.settled[-1]
        if last.descriptors > first.descriptors + SLACK:
            found.append(f"descriptors grew from {first.descriptors} to {last.descriptors}")
        if last.threads > first.threads + SLACK:
            found.append(f"threads grew from {first.threads} to {last.threads}")
        if last.series > first.series + SERIES_SLACK:
            found.append(f"series of metrics grew from {first.series} to {last.series}")
        if last.kv_usage > 0.0:
            found.append(f"{last.kv_usage:.1%} of the KV cache is held by nobody")
        return found


async def soak(
    faults: Sequence[InflictedFault],
    times_s: tuple[float, float],
    seed: int,
    on_row: Callable[[FaultRow, LeakSample], None],
    context: FaultContext,
) -> Soaked:
    """Each fault once, then faults at random, until the times are over or the server is unwell.

    The first of the two is the warm-up's. It lasts longer if growth could not be told yet.
    """
    rng = random.Random(seed)
    due = rng.sample(faults, len(faults))
    began_s = now_s()
    rows: list[FaultRow] = []
    samples: list[LeakSample] = []
    while now_s() - began_s < sum(times_s) or len(samples) < len(faults) + LEAST_SAMPLES:
        row = await try_fault(due.pop() if due else rng.choice(faults), context)
        rows.append(row)
        if not row.is_clean:
            break
        samples.append(await _sampled(context, now_s() - began_s))
        on_row(row, samples[-1])
    warm = sum(sample.at_s < times_s[0] for sample in samples)
    return Soaked(tuple(rows), tuple(samples), max(len(faults), warm))


async def _sampled(context: FaultContext, at_s: float) -> LeakSample:
    """Without the memory that the C library keeps for later, which hides growth."""
    context.injector.trim()
    await asyncio.sleep(TRIM_S)
    client = context.client
    return sample(context.process, at_s, await client.kv_usage(), await client.series())


def report(soaked: Soaked) -> str:
    """The figures, one a line."""
    rows = soaked.rows
    lost, wrong, disturbed = (
        sum(getattr(row, name) for row in rows) for name in ("lost", "wrong", "disturbed")
    )
    lines = [
        f"faults inflicted      {len(rows)}, of {len({row.fault for row in rows})} kinds",
        f"requests              {sum(row.requests for row in rows)}: lost {lost}, wrong {wrong}, "
        f"disturbed {disturbed}",
    ]
    if soaked.memory is not None:
        first, last = soaked.settled[0], soaked.settled[-1]
        lines += [
            f"time                  {last.at_s / 60:.1f} min, of which {first.at_s / 60:.1f} warm-up",
            f"resident memory       {first.rss_bytes / MIB:.0f} -> {last.rss_bytes / MIB:.0f} MiB, "
            f"slope {_shown(soaked.memory)}",
            *(
                f"  of {title:<18} {first.rss_by_process[title] / MIB:.0f} -> "
                f"{last.rss_by_process[title] / MIB:.0f} MiB, slope {_shown(slope)}"
                for title, slope in soaked.memory_by_process.items()
            ),
            f"file descriptors      {first.descriptors} -> {last.descriptors}",
            f"threads               {first.threads} -> {last.threads}",
            f"series of metrics     {first.series} -> {last.series}",
            f"KV cache held, idle   {last.kv_usage:.1%}",
        ]
    return "\n".join(lines)


def _shown(found: Slope) -> str:
    return f"{found.per_hour:+.0f} MiB an hour [{found.low:+.0f}, {found.high:+.0f}]"
