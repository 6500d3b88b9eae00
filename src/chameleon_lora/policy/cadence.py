"""Counts the engine's steps, and says in which of them it admits (S-LoRA: not in each)."""


class Cadence:
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
        """Somebody was admitted in this step."""
        self._next = self.step + self._every_steps

    @property
    def is_admitting(self) -> bool:
        """True if this step may admit."""
        return self.step >= self._next

    @property
    def is_prefetching(self) -> bool:
        """True in the second half of the time between two admissions."""
        return self._next - self.step <= (self._every_steps + 1) // 2
