"""Where adapters were when the last requests for them arrived."""

from collections import deque
from itertools import islice
from typing import Any

KEPT = 16_384


class Arrivals:
    """The last requests with an adapter, each with its adapter's tier at that moment.

    Owner: the driver; lives as long as it. Invariant: the newest has the number `_count`, and those
    kept are numbered without gap.
    """

    def __init__(self, kept: int = KEPT) -> None:
        self._last: deque[tuple[str, str]] = deque(maxlen=kept)
        self._count = 0

    def note(self, request_id: str, tier: str) -> None:
        """One arrived; `tier` is one of `tiers.TIERS`."""
        self._last.append((request_id, tier))
        self._count += 1

    def after(self, number: int) -> dict[str, Any]:
        """Those counted after the `number`-th, as far as they are kept, and the newest's number."""
        wanted = min(max(0, self._count - number), len(self._last))
        newest = list(islice(reversed(self._last), wanted))
        return {"next": self._count, "arrivals": [list(pair) for pair in reversed(newest)]}
