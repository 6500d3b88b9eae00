"""Who has been overtaken so often that it goes first (ADR 0012)."""

from collections.abc import Callable

from chameleon_lora.policy.lanes import Ticket


class Patience:
    """How often younger requests may still pass the oldest one held back. Lives for one step.

    Attributes:
        urgent: the oldest request held back, once it was overtaken to its limit: it goes first.
    """

    def __init__(
        self, oldest_ready: Callable[[], Ticket | None], blocked: Ticket | None, limit: int
    ) -> None:
        self._oldest_ready = oldest_ready
        self._blocked = blocked  # the oldest whose adapter lacks room in host memory
        self._limit = limit
        self.urgent = self._find_urgent()

    @property
    def is_spent(self) -> bool:
        """True when nobody passes the urgent request any more, whatever it waits for."""
        return self.urgent is not None and self.urgent.overtaken >= 2 * self._limit

    def admitted(self, ticket: Ticket) -> None:
        """A request was let in. Afterwards the oldest one held back counts it, if it is younger."""
        oldest = self._oldest()
        if oldest is not None and oldest.sequence < ticket.sequence:
            oldest.overtaken += 1
        self.urgent = self._find_urgent()

    def _oldest(self) -> Ticket | None:
        """The oldest request held back: ready, or kept from loading by want of room."""
        ready, blocked = self._oldest_ready(), self._blocked
        if ready is None or (blocked is not None and blocked.sequence < ready.sequence):
            return blocked
        return ready

    def _find_urgent(self) -> Ticket | None:
        oldest = self._oldest()
        is_over = oldest is not None and oldest.overtaken >= self._limit
        return oldest if is_over else None
