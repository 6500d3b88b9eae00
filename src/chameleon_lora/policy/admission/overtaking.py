"""Who has been overtaken so often that it goes first (ADR 0012), and which steps admit at all."""

from collections.abc import Callable

from chameleon_lora.policy.queues.lanes import RequestState


class OvertakeGuard:
    """How often younger requests may still pass the oldest one held back. Lives for one step.

    Attributes:
        urgent: the oldest request held back, once it was overtaken to its limit: it goes first.
    """

    def __init__(
        self,
        oldest_ready: Callable[[], RequestState | None],
        blocked: RequestState | None,
        limit: int | None,
    ) -> None:
        self._oldest_ready = oldest_ready
        self._blocked = blocked  # the oldest whose adapter lacks room in host memory
        self._limit = limit
        self.urgent = self._find_urgent()

    @property
    def is_spent(self) -> bool:
        """True when nobody passes the urgent request any more, whatever it waits for."""
        return self._has_passed(self.urgent, 2)

    def admitted(self, state: RequestState) -> None:
        """A request was let in. Afterwards the oldest one held back counts it, if it is younger."""
        oldest = self._oldest()
        if oldest is not None and oldest.sequence < state.sequence:
            oldest.overtaken += 1
        self.urgent = self._find_urgent()

    def _oldest(self) -> RequestState | None:
        """The oldest request held back: ready, or kept from loading by want of room."""
        ready, blocked = self._oldest_ready(), self._blocked
        if ready is None or (blocked is not None and blocked.sequence < ready.sequence):
            return blocked
        return ready

    def _find_urgent(self) -> RequestState | None:
        oldest = self._oldest()
        return oldest if self._has_passed(oldest, 1) else None

    def _has_passed(self, oldest: RequestState | None, times: int) -> bool:
        """Whether it was overtaken to so many times the limit, if there is one."""
        if oldest is None or self._limit is None:
            return False
        return oldest.overtaken >= times * self._limit


class AdmissionInterval:
    """After an admission nobody is admitted for a while, and prefetches begin halfway through it.

    Attributes:
        step: the engine's steps so far.
    """

    def __init__(self, every_steps: int) -> None:
        self._every_steps = every_steps
        self._next = 0  # the first step that may admit
        self.step = 0

    def passed(self, steps: int) -> None:
        """The engine ran so many steps."""
        self.step += steps

    def admitted(self) -> None:
        """Somebody was admitted in this step: the next `every_steps` - 1 admit nobody."""
        self._next = self.step + self._every_steps

    @property
    def is_admitting(self) -> bool:
        """True if this step may admit."""
        return self.step >= self._next

    @property
    def is_prefetching(self) -> bool:
        """True in the second half of the time between two admissions."""
        return self._next - self.step <= (self._every_steps + 1) // 2
