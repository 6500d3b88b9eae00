"""Times between a request's tokens, gathered by steps: all who decode see the same gap."""


class TokenGaps:
    """Adds (seconds, how many) to a list. Lives with an engine.

    Attributes:
        last_s: when the last decode step ended.
    """

    def __init__(self, gaps: list[tuple[float, int]]) -> None:
        self._gaps = gaps
        self._fresh: list[float] = []  # first tokens since the last decode step
        self.last_s = 0.0

    def joined(self, former_s: float | None, now_s: float, *, is_decoding: bool) -> None:
        """A request got a token from its prompt: its first, or the first since it was taken out."""
        if former_s is not None:
            self._gaps.append((now_s - former_s, 1))
        if is_decoding:
            self._fresh.append(now_s)

    def left(self, joined_s: float | None) -> float:
        """A decoding request, which joined then, is taken out; answers when it got its last token."""
        if joined_s is None or joined_s not in self._fresh:
            return self.last_s
        self._fresh.remove(joined_s)
        return joined_s

    def decoded(self, requests: int, first_s: float, end_s: float, steps: int) -> None:
        """So many requests got a token in each of some steps; the first of these ended at `first_s`."""
        if not requests:
            return
        self._gaps.extend((first_s - fresh_s, 1) for fresh_s in self._fresh)
        old = requests - len(self._fresh)
        if old > 0:
            self._gaps.append((first_s - self.last_s, old))
        if steps > 1:
            self._gaps.append(((end_s - first_s) / (steps - 1), requests * (steps - 1)))
        self._fresh.clear()
        self.last_s = end_s
