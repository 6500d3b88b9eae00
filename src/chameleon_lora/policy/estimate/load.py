"""How long requests wait and how fast the engine works, and the head start that follows for small ones.

Boost (Yu and Scully, "Strongly Tail-Optimal Scheduling in the Light-Tailed M/G/1", SIGMETRICS 2024):
serve in order of arrival moved earlier by b(s) = ln(1 / (1 - exp(-gamma s))) / gamma, with s the
service time and gamma the decay rate of the waiting-time tail. Small requests gain much, large ones
nothing, and since the gain is a fixed time nobody starves.
"""

import math

MEMORY = 128  # requests over which the running means forget


class LoadEstimator:
    """Running means of waiting time and of tokens per second. Owner: the scheduler."""

    def __init__(self) -> None:
        self._wait_s = 0.0
        self._gap_s = 0.0
        self._tokens = 0.0
        self._last_end_s: float | None = None

    def admitted(self, waited_s: float) -> None:
        """A request ran for the first time after this wait."""
        self._wait_s += (waited_s - self._wait_s) / MEMORY

    def ended(self, tokens: int, now_s: float) -> None:
        """A request of this many tokens (input and output) ended."""
        if self._last_end_s is not None:
            self._gap_s += (now_s - self._last_end_s - self._gap_s) / MEMORY
            self._tokens += (tokens - self._tokens) / MEMORY
        self._last_end_s = now_s

    def boost_s(self, tokens: int) -> float:
        """Head start of a request of this size, in seconds; 0 while nothing waits or ended yet."""
        if self._wait_s < 1e-3 or self._tokens == 0.0:
            return 0.0
        gamma = 1.0 / self._wait_s
        service_s = tokens * self._gap_s / self._tokens
        return -math.log(-math.expm1(-gamma * max(service_s, 1e-6))) / gamma
