"""Who among several users of one engine has had less than its share (start-time fair queueing).

Each share counts the tokens charged to its admissions, divided by its weight. The share that has had
least goes first: in a lane, and among lanes where the first of all heads does. One that comes back after
a pause starts level with those who wait, so that idle time is no credit. Requests without a share count
nothing; beside shares they would always go first.
"""

from chameleon_lora.policy.request import Share


class Shares:
    """What each share has had. Owner: the backlog.

    Invariant: without shares every answer is 0, and nothing is kept.
    """

    def __init__(self) -> None:
        self._had: dict[str, float] = {}
        self._waiting: dict[str, int] = {}
        self._level = 0.0  # what the share admitted last had had before

    def had(self, share: Share | None) -> float:
        """Tokens by weight that it has been charged, or was levelled to."""
        return 0.0 if share is None else self._had.get(share.name, 0.0)

    def waits(self, share: Share | None) -> None:
        """One more of its requests waits. O(shares) if it is the only one."""
        if share is None:
            return
        if share.name not in self._waiting:
            level = min((self._had[name] for name in self._waiting), default=self._level)
            self._had[share.name] = max(self.had(share), level)
        self._waiting[share.name] = self._waiting.get(share.name, 0) + 1

    def waits_no_more(self, share: Share | None) -> None:
        """One of its waiting requests was admitted, or left."""
        if share is None:
            return
        self._waiting[share.name] -= 1
        if not self._waiting[share.name]:
            del self._waiting[share.name]

    def charge(self, share: Share | None, tokens: int) -> None:
        """A request of it was admitted: its count rises by the tokens over its weight."""
        if share is not None:
            self._level = self.had(share)
            self._had[share.name] = self._level + tokens / share.weight

    def give_back(self, share: Share | None, tokens: int) -> None:
        """A request of it is to run later after all, or took so many fewer; more, if below 0."""
        if share is not None:
            self._had[share.name] = self.had(share) - tokens / share.weight
