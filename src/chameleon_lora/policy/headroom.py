"""How many KV blocks adapters leave idle: for requests that grow, and for prefixes that come again."""


class Headroom:
    """A fixed part, and as much as requests lately missed in the prefix cache for adapters' sake.

    The second part is forgotten by half in each `half_life_s`, so that adapters come back when
    prefixes do not; with 0 there is none.

    Attributes:
        last_blocks: the answer when it was last asked for.
    """

    def __init__(self, fixed_blocks: int, most_blocks: int, half_life_s: float) -> None:
        self._fixed_blocks = fixed_blocks
        self.last_blocks = fixed_blocks
        self._most_blocks = most_blocks
        self._half_life_s = half_life_s
        self._missed_blocks = 0.0
        self._since_s = 0.0

    def missed(self, blocks: int, now_s: float) -> None:
        """A request would have found so many blocks cached, had adapters not taken them."""
        if self._half_life_s:
            self._missed_blocks = self._left(now_s) + blocks
            self._since_s = now_s

    def blocks(self, now_s: float) -> int:
        """Blocks that are to stay idle now."""
        self.last_blocks = min(self._most_blocks, self._fixed_blocks + int(self._left(now_s)))
        return self.last_blocks

    def is_raised(self, now_s: float) -> bool:
        """Whether anything was missed lately."""
        return self._left(now_s) >= 1.0

    def _left(self, now_s: float) -> float:
        if not self._missed_blocks:
            return 0.0
        return float(self._missed_blocks * 0.5 ** ((now_s - self._since_s) / self._half_life_s))
