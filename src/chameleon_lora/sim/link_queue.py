"""A link in use: copies queue for it, first come, first served."""

from chameleon_lora.sim.profile import Link


class LinkQueue:
    """When a link comes free. A copy under way is never interrupted."""

    def __init__(self, link: Link) -> None:
        self._link = link
        self._free_s = 0.0
        self.busy_s = 0.0
        self.nbytes = 0

    def copy(self, nbytes: int, now_s: float) -> float:
        """Begin a copy as soon as those before it are done; answers when it will be complete."""
        seconds = self._link.copy_s(nbytes)
        self._free_s = max(self._free_s, now_s) + seconds
        self.busy_s += seconds
        self.nbytes += nbytes
        return self._free_s
