"""Was the load generator itself in time?"""

from collections.abc import Sequence
from dataclasses import dataclass

from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.metrics.summary import percentile

LIMIT_S = 0.05
"""The 99th percentile of lateness from which a run has fallen behind.

Time to first token counts from the intended arrival, so what the client is late by is in it. 50 ms
is about one engine step of a large model, and half of what a reader notices. A client that keeps up
is late by a few ms at most (timers are that coarse), one that does not is soon late by seconds.
"""


@dataclass(frozen=True, slots=True)
class Lateness:
    """How long after their arrival times a run's requests were sent.

    Attributes:
        limit_s: the P99 above which the run has fallen behind.
        has_fallen_behind: then its latencies are the client's as much as the server's; way out: a
            lower rate, or a client on a core of its own.
    """

    p50_s: float
    p99_s: float
    max_s: float
    limit_s: float
    has_fallen_behind: bool


def lateness(records: Sequence[RequestRecord], limit_s: float = LIMIT_S) -> Lateness | None:
    """The lateness of all requests, failed ones too; None of a run without requests."""
    if not records:
        return None
    late_s = [record.lateness_s for record in records]
    p99_s = percentile(late_s, 99.0)
    return Lateness(
        p50_s=percentile(late_s, 50.0),
        p99_s=p99_s,
        max_s=max(late_s),
        limit_s=limit_s,
        has_fallen_behind=p99_s > limit_s,
    )
