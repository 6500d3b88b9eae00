"""What went wrong last, where something is tried again and again: so that the log tells it once."""


class LastTrouble:
    """The trouble of the last try, None if it went well. Owner: who tries."""

    def __init__(self) -> None:
        self._last: object = None

    def note(self, trouble: object) -> bool:
        """Afterwards this is the last one; answers whether it is another than before, so to be told."""
        former, self._last = self._last, trouble
        return trouble != former
