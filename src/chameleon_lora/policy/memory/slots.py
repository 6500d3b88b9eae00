"""Which adapters are in the engine's slots, several in one where their ranks allow (ADR 0015).

A slot is divided into cells. An adapter takes a window: a power of two of neighbouring cells, aligned
to its length, never across slots. With one cell a slot this is vLLM's one adapter a slot.
"""

from collections.abc import Callable, Mapping, Sequence

from chameleon_lora.policy.memory.device import DeviceCache
from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.plan import cells_needed, overlap
from chameleon_lora.policy.request import AdapterId

KeepScore = Callable[[Sequence[Entry]], list[float]]
EMPTY = (0, 0, False)


class SlotTable:
    """The cells of all slots. Owner: Residency.

    Invariants: an entry's window is `entry.cells` cells from `entry.cell` on, and only there; windows
    do not overlap; `busy_cells` counts the cells whose adapter has a running request.

    Attributes:
        keeps_idle: an adapter stays when its last request ends, until another takes its place.
    """

    keeps_idle = True

    def __init__(self, slots: int, parts: int, max_rank: int) -> None:
        self.count = slots
        self._parts = parts
        self._max_rank = max_rank
        self._cells: list[Entry | None] = [None] * (slots * parts)
        self._idle: dict[int, list[range]] = {}  # idle windows by length, while they stay so
        self._in_use: list[AdapterId] | None = None  # likewise
        self.busy_cells = 0

    def cells_for(self, rank: int) -> int:
        """Cells an adapter of this rank takes; at most a whole slot."""
        return cells_needed(rank, self._parts, self._max_rank)

    def blocks_to_run(self, _entry: Entry) -> int:
        """KV blocks that a request's adapter takes in order to run: none, for it runs from its slot."""
        return 0

    def in_use(self) -> list[AdapterId]:
        """The adapters with a running request, by cell."""
        if self._in_use is None:
            occupants = dict.fromkeys(self._cells)  # each once, by cell
            self._in_use = [e.adapter.id for e in occupants if e is not None and e.running]
        return self._in_use

    def at(self, window: range) -> list[Entry]:
        """The adapters that have cells in the window, each once, by cell. O(window)."""
        found: dict[int, Entry] = {}
        for cell in window:
            entry = self._cells[cell]
            if entry is not None:
                found[entry.adapter.id] = entry
        return list(found.values())

    def try_find(self, needed: int, avoid: Sequence[range], keep_score: KeepScore) -> int | None:
        """The cell where a new adapter costs least, or None if each window is in use.

        Costs least: evicts nobody pinned, nobody whom requests wait for, what is least worth keeping,
        and then leaves the other slots whole. Windows that overlap `avoid` are left out.
        """
        idle = self._idle.get(needed)
        if idle is None:
            idle = self._idle[needed] = self._find_idle(needed)
        allowed = (
            [w for w in idle if not any(overlap(w, kept) for kept in avoid)] if avoid else idle
        )
        if len(allowed) < 2:
            return allowed[0].start if allowed else None
        if self._parts == 1:
            return self._cheapest_slot(allowed, keep_score)
        occupants = [(self.at(window), window) for window in allowed]
        least = min(_hardship(found) for found, _ in occupants)
        likely = [(found, window) for found, window in occupants if _hardship(found) == least]
        if least > EMPTY:
            likely = _cheapest(likely, keep_score)
        return min((self._free_beside(window), window.start) for _, window in likely)[1]

    def _cheapest_slot(self, allowed: Sequence[range], keep_score: KeepScore) -> int:
        """The same for slots of one cell, which have one occupant at most: vLLM's, and the common case."""
        occupants: list[Entry] = []
        for window in allowed:
            entry = self._cells[window.start]
            if entry is None:
                return window.start
            occupants.append(entry)
        occupants = [e for e in occupants if not e.is_pinned] or occupants
        occupants = [e for e in occupants if not e.queued] or occupants
        scores = keep_score(occupants)
        cells = (e.cell for e in occupants)
        return min(
            (score, cell) for score, cell in zip(scores, cells, strict=True) if cell is not None
        )[1]

    def by_cell(self, left_tokens: Mapping[AdapterId | None, int]) -> list[int]:
        """For each cell, in how many predicted steps nobody will run with it; 0 for idle ones."""
        return [left_tokens.get(e.adapter.id, 0) if e is not None else 0 for e in self._cells]

    def first_to_end(
        self, needed: int, left_tokens: Sequence[int], avoid: Sequence[range]
    ) -> tuple[range, int] | None:
        """The window that comes free first, and in how many predicted steps."""
        starts = range(0, len(left_tokens), needed)
        ends = [(max(left_tokens[start : start + needed]), start) for start in starts]
        for left, start in sorted(ends):
            window = range(start, start + needed)
            if not any(overlap(window, kept) for kept in avoid):
                return window, left
        return None

    def put(self, entry: Entry, cell: int) -> None:
        """Afterwards the entry is in the window at this cell; the caller removed whoever was there."""
        entry.cell = cell
        for index in range(cell, cell + entry.cells):
            assert self._cells[index] is None
            self._cells[index] = entry

    def remove(self, entry: Entry) -> None:
        """Afterwards the entry is in no slot."""
        if entry.cell is not None:
            for index in range(entry.cell, entry.cell + entry.cells):
                self._cells[index] = None
            entry.cell = None

    def add_busy(self, cells: int) -> None:
        """So many cells more, or fewer, have a running request."""
        self.busy_cells += cells
        self._idle.clear()
        self._in_use = None

    def _find_idle(self, needed: int) -> list[range]:
        """The windows in which no adapter has a running request."""
        is_busy = [e is not None and e.running > 0 for e in self._cells]
        starts = range(0, len(is_busy), needed)
        return [range(s, s + needed) for s in starts if not any(is_busy[s : s + needed])]

    def _free_beside(self, window: range) -> int:
        """Free cells in the window's slot: few, so that whole slots stay whole."""
        first = window.start // self._parts * self._parts
        return self._cells[first : first + self._parts].count(None)


def _hardship(found: Sequence[Entry]) -> tuple[int, int, bool]:
    """How much it takes to evict these: pinned ones, those whom requests wait for, any at all."""
    if not found:
        return EMPTY
    return (sum(e.is_pinned for e in found), sum(e.queued > 0 for e in found), True)


def _cheapest(
    windows: Sequence[tuple[list[Entry], range]], keep_score: KeepScore
) -> list[tuple[list[Entry], range]]:
    """Those whose occupants are least worth keeping, summed; each counts for something."""
    occupants = list({entry.adapter.id: entry for found, _ in windows for entry in found}.values())
    scores = dict(
        zip((entry.adapter.id for entry in occupants), keep_score(occupants), strict=True)
    )
    costs = [sum(1.0 + scores[entry.adapter.id] for entry in found) for found, _ in windows]
    least = min(costs)
    return [window for window, cost in zip(windows, costs, strict=True) if cost == least]


class PagedSlots:
    """No slots: adapters run from the KV blocks they lie in (ADR 0020). Owner: Residency.

    It answers like a table in which every adapter finds a place. An entry has cell 0, and its blocks
    are in use, while requests run with it.
    """

    count = 1
    keeps_idle = False

    def __init__(self, device: DeviceCache) -> None:
        self._device = device
        self._in_use: dict[AdapterId, None] = {}
        self.busy_cells = 0

    def cells_for(self, _rank: int) -> int:
        """Any adapter takes one cell."""
        return 1

    def blocks_to_run(self, entry: Entry) -> int:
        """KV blocks that are in use, beside those that are, once a request runs with it."""
        return 0 if entry.running else self._device.blocks_for(entry.adapter.nbytes)

    def in_use(self) -> list[AdapterId]:
        """The adapters with a running request, in the order of their first ones."""
        return list(self._in_use)

    def at(self, _window: range) -> list[Entry]:
        """Nobody has to make way."""
        return []

    def try_find(self, _needed: int, _avoid: Sequence[range], _keep_score: KeepScore) -> int | None:
        """There is always a place; memory is counted in KV blocks."""
        return 0

    def by_cell(self, _left_tokens: Mapping[AdapterId | None, int]) -> list[int]:
        """There are no cells to come free."""
        return []

    def first_to_end(
        self, _needed: int, _left_tokens: Sequence[int], _avoid: Sequence[range]
    ) -> tuple[range, int] | None:
        """There are no cells to come free."""
        return None

    def put(self, entry: Entry, cell: int) -> None:
        """Requests run with the entry from now on."""
        entry.cell = cell
        self._in_use[entry.adapter.id] = None
        self._device.hold(entry)

    def remove(self, entry: Entry) -> None:
        """No request runs with the entry any more."""
        if entry.cell is not None:
            entry.cell = None
            del self._in_use[entry.adapter.id]
            self._device.release(entry)

    def add_busy(self, cells: int) -> None:
        """So many adapters more, or fewer, have a running request."""
        self.busy_cells += cells


Slots = SlotTable | PagedSlots
