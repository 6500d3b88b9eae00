"""How many requests a second can a server complete when it never runs out of work?"""

import asyncio
from collections.abc import Sequence
from dataclasses import replace

from chameleon_lora.bench.replay import Target, replay
from chameleon_lora.errors import BenchError
from chameleon_lora.metrics.record import RequestRecord
from chameleon_lora.workload.requests import TimedRequest


def measure_capacity(
    target: Target, requests: Sequence[TimedRequest], *, seats: int, patience_s: float = 120.0
) -> float:
    """Requests/s of a server with `seats` seats that is given all of `requests` at once.

    See `capacity_from` for the estimate. The requests' own arrival times are ignored.

    Raises:
        BenchError: a request failed, or there are too few of them.
    """
    at_once = [replace(request, arrival_s=0.0) for request in requests]
    return capacity_from(asyncio.run(replay(target, at_once, patience_s=patience_s)), seats=seats)


def capacity_from(records: Sequence[RequestRecord], *, seats: int) -> float:
    """Completed requests/s while all seats were taken.

    The clock stops when only `seats` requests are left, for from then on seats stand empty; those
    left are half done on average, so half of them count.

    Raises:
        BenchError: a request failed, or there are no more requests than seats.
    """
    for record in records:
        if record.error is not None:
            raise BenchError(f"request {record.index} of the capacity probe failed: {record.error}")
    if len(records) <= seats:
        raise BenchError(
            f"{len(records)} requests cannot fill {seats} seats: probe with more than {seats}"
        )
    ends_s = sorted(record.end_s for record in records)
    full = len(records) - seats
    return (full + seats / 2.0) / ends_s[full - 1]
