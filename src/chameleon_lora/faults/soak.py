"""Load for a long time, with one random fault after the other, and what leaked meanwhile."""

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from chameleon_lora.faults.client import now_s
from chameleon_lora.faults.fault import Fault
from chameleon_lora.faults.leaks import Sample, Slope, after_warm_up, sample, slope
from chameleon_lora.faults.scene import Scene
from chameleon_lora.faults.trial import Row, try_fault

MIB = 1 << 20
SLACK = 2  # descriptors and threads may differ by so many: connections that just close


@dataclass(frozen=True, slots=True)
class Soaked:
    """What a soak showed.

    Attributes:
        samples: one after each fault, with the server idle; the first before all.
    """

    rows: tuple[Row, ...]
    samples: tuple[Sample, ...]

    @property
    def memory(self) -> Slope:
        """Growth of resident memory, MiB an hour, after the warm-up."""
        settled = after_warm_up(self.samples)
        return slope([s.at_s for s in settled], [s.rss_bytes / MIB for s in settled])

    def troubles(self) -> list[str]:
        """What is wrong; empty if nothing is."""
        first, last = after_warm_up(self.samples)[0], self.samples[-1]
        found = [
            f"{row.fault}: lost {row.lost}, wrong {row.wrong}, disturbed {row.disturbed}, "
            f"unexpected {row.unexpected}; {row.said}"
            for row in self.rows
            if row.lost or row.wrong or row.disturbed or row.unexpected or not row.is_clean
        ]
        if self.memory.is_growth:
            found.append(f"resident memory grows by {_shown(self.memory)}")
        if last.descriptors > first.descriptors + SLACK:
            found.append(f"descriptors grew from {first.descriptors} to {last.descriptors}")
        if last.threads > first.threads + SLACK:
            found.append(f"threads grew from {first.threads} to {last.threads}")
        if last.kv_usage > 0.0:
            found.append(f"{last.kv_usage:.1%} of the KV cache is held by nobody")
        return found


async def soak(
    faults: Sequence[Fault],
    duration_s: float,
    seed: int,
    on_row: Callable[[Row, Sample], None],
    scene: Scene,
) -> Soaked:
    """Faults under load, drawn at random, until the time is over or the server is unwell."""
    rng = random.Random(seed)
    began_s = now_s()
    rows: list[Row] = []
    samples = [sample(scene.process, 0.0, await scene.client.kv_usage())]
    while now_s() - began_s < duration_s:
        row = await try_fault(rng.choice(faults), scene)
        rows.append(row)
        if not row.is_clean:
            break
        samples.append(sample(scene.process, now_s() - began_s, await scene.client.kv_usage()))
        on_row(row, samples[-1])
    return Soaked(tuple(rows), tuple(samples))


def report(soaked: Soaked) -> str:
    """The figures, one a line."""
    rows, settled = soaked.rows, after_warm_up(soaked.samples)
    first, last = settled[0], soaked.samples[-1]
    requests = sum(row.requests for row in rows)
    lines = [
        f"faults inflicted      {len(rows)} of {len({row.fault for row in rows})} kinds",
        f"time                  {last.at_s / 60:.1f} min",
        f"requests              {requests}: lost {sum(r.lost for r in rows)}, wrong "
        f"{sum(r.wrong for r in rows)}, disturbed {sum(r.disturbed for r in rows)}",
        f"resident memory       {first.rss_bytes / MIB:.0f} -> {last.rss_bytes / MIB:.0f} MiB, "
        f"slope {_shown(soaked.memory)}",
        f"file descriptors      {first.descriptors} -> {last.descriptors}",
        f"threads               {first.threads} -> {last.threads}",
        f"KV cache held, idle   {last.kv_usage:.1%}",
    ]
    return "\n".join(lines)


def _shown(found: Slope) -> str:
    return f"{found.per_hour:+.0f} MiB an hour [{found.low:+.0f}, {found.high:+.0f}]"
