"""The busiest second of a run."""

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from chameleon_lora.metrics.record import RequestRecord


@dataclass(frozen=True, slots=True)
class Peaks:
    """The most in any one second, seconds counted from when the first request was sent.

    Attributes:
        output_tokens: stream chunks with text that came.
        requests: under way at some time of the second.
    """

    output_tokens: int
    requests: int


def peaks(records: Sequence[RequestRecord]) -> Peaks:
    """The peaks of the completed requests; both 0 if there are none.

    As `vllm bench serve` counts max_output_tokens_per_s and max_concurrent_requests.
    """
    completed = [record for record in records if record.is_completed]
    first_s = min((record.sent_s for record in completed), default=0.0)
    tokens = Counter(
        math.floor(time_s - first_s) for record in completed for time_s in record.token_times_s
    )
    requests: Counter[int] = Counter()
    for record in completed:
        begin, end = math.floor(record.sent_s - first_s), math.floor(record.end_s - first_s)
        requests.update(range(begin, end + 1))
    return Peaks(max(tokens.values(), default=0), max(requests.values(), default=0))
