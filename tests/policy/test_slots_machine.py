"""Where in the slots an adapter goes, in any history: compared with searches that remember nothing."""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.memory.slots import SlotTable
from chameleon_lora.policy.plan import overlap
from chameleon_lora.policy.request import AdapterId
from tests.policy.engine_model import adapter


class SlotTableMachine(RuleBasedStateMachine):
    """Any history of a table, checked against searches that look at every cell anew."""

    @initialize(slots=st.integers(1, 3), parts=st.sampled_from((1, 2, 4, 8)))
    def begin(self, slots: int, parts: int) -> None:
        """An empty table."""
        self.parts = parts
        self.count = slots * parts
        self.table = SlotTable(slots, parts, 8 * parts)
        self.entries = {number: Entry(adapter(number)) for number in range(12)}
        self.worths: dict[int, float] = dict.fromkeys(self.entries, 0.0)

    @rule(data=st.data(), number=st.integers(0, 11), rank=st.integers(1, 32))
    def bring(self, data: st.DataObject, number: int, rank: int) -> None:
        """Put an adapter where the table says, as Residency does: those in its way leave."""
        self.put(self.entries[number], rank, data.draw(self.windows()))

    @rule(ranks=st.lists(st.integers(1, 16), min_size=12, max_size=12))
    def fill(self, ranks: list[int]) -> None:
        """Bring them all, so that windows without a tenant are rare."""
        for entry, rank in zip(self.entries.values(), ranks, strict=True):
            self.put(entry, rank, [])

    def put(self, entry: Entry, rank: int, avoid: Sequence[range]) -> None:
        """An adapter of this rank takes its cells, if there are any for it."""
        if entry.cell is not None:
            return
        entry.cells = self.table.cells_for(rank)
        cell = self.table.try_find(entry.cells, avoid, self.keep_score)
        if cell is None:
            return
        for former in self.table.at(range(cell, cell + entry.cells)):
            self.table.remove(former)
        self.table.put(entry, cell)

    @rule(number=st.integers(0, 11))
    def start(self, number: int) -> None:
        """A request of the adapter runs."""
        entry = self.entries[number]
        if entry.cell is not None:
            if not entry.running:
                self.table.add_busy(entry.cells)
            entry.running += 1

    @rule(number=st.integers(0, 11))
    def stop(self, number: int) -> None:
        """One of them ends."""
        entry = self.entries[number]
        if entry.running:
            entry.running -= 1
            if not entry.running:
                self.table.add_busy(-entry.cells)

    @rule(number=st.integers(0, 11))
    def evict(self, number: int) -> None:
        """An idle adapter leaves host memory."""
        if not self.entries[number].running:
            self.table.remove(self.entries[number])

    @rule(
        queued=st.sets(st.integers(0, 11)),
        pinned=st.sets(st.integers(0, 11)),
        worths=st.lists(st.sampled_from((0.0, 0.25, 0.5, 1.0)), min_size=12, max_size=12),
    )
    def value(self, queued: set[int], pinned: set[int], worths: list[float]) -> None:
        """Requests come to wait, somebody pins, uses change what each is worth."""
        for number, entry in self.entries.items():
            entry.queued, entry.is_pinned = int(number in queued), number in pinned
        self.worths = dict(enumerate(worths))

    @rule(data=st.data(), exponent=st.integers(0, 3))
    def find(self, data: st.DataObject, exponent: int) -> None:
        """What is found is the best of all windows, or there is none, remembered or not."""
        needed = min(2**exponent, self.parts)
        avoid = data.draw(self.windows())
        found = self.table.try_find(needed, avoid, self.keep_score)
        allowed = {
            start: self.table.at(range(start, start + needed))
            for start in range(0, self.count, needed)
            if not any(overlap(range(start, start + needed), kept) for kept in avoid)
        }
        idle = {s: who for s, who in allowed.items() if not any(e.running for e in who)}
        if not idle:
            assert found is None
            return
        assert found is not None
        harm = {start: self.harm(who) for start, who in idle.items()}
        assert min(harm.values()) == harm[found]
        begun = {start: self.free_in_slot(start) for start in idle if harm[start] == harm[found]}
        assert min(begun.values()) == begun[found]

    @rule(data=st.data(), exponent=st.integers(0, 3))
    def promise(self, data: st.DataObject, exponent: int) -> None:
        """The window that comes free first is the minimum over all of them."""
        needed = min(2**exponent, self.parts)
        avoid = data.draw(self.windows())
        users = [number for number, entry in self.entries.items() if entry.running]
        drawn: dict[AdapterId | None, int] = {None: 7}  # requests without adapter count nowhere
        drawn.update({AdapterId(number): data.draw(st.integers(1, 9)) for number in users})
        left = self.table.by_cell(drawn)
        ends = {}
        for start in range(0, self.count, needed):
            window = range(start, start + needed)
            if not any(overlap(window, kept) for kept in avoid):
                busy = [drawn[e.adapter.id] for e in self.table.at(window) if e.running]
                ends[start] = max(busy, default=0)
        found = self.table.first_to_end(needed, left, avoid)
        if found is None:
            assert not ends
            return
        window, tokens = found
        assert needed == len(window)
        assert min(ends.values()) == ends[window.start] == tokens

    @invariant()
    def everybody_has_its_own_cells(self) -> None:
        """Windows are aligned, stay in one slot, do not overlap, and all that run are counted."""
        if not hasattr(self, "table"):
            return
        taken: list[int] = []
        for entry in self.entries.values():
            if entry.cell is None:
                assert not entry.running
                continue
            window = range(entry.cell, entry.cell + entry.cells)
            assert 0 == entry.cell % entry.cells
            assert window.start // self.parts == (window.stop - 1) // self.parts
            assert [entry] == self.table.at(window)
            taken += window
        assert len(set(taken)) == len(taken) <= self.count
        assert {e.adapter.id for e in self.table.at(range(self.count))} == {
            number for number, e in self.entries.items() if e.cell is not None
        }
        users = [entry for entry in self.entries.values() if entry.running]
        assert sum(entry.cells for entry in users) == self.table.busy_cells
        assert {entry.adapter.id for entry in users} == set(self.table.in_use())

    def keep_score(self, entries: Sequence[Entry]) -> list[float]:
        """As drawn."""
        return [self.worths[entry.adapter.id] for entry in entries]

    def harm(self, who: Sequence[Entry]) -> tuple[int, int, float]:
        """What eviction of all of them costs: pinned ones first, then needed ones, then worth."""
        keep_score = sum(1.0 + self.worths[entry.adapter.id] for entry in who)
        return sum(e.is_pinned for e in who), sum(e.queued > 0 for e in who), keep_score

    def free_in_slot(self, start: int) -> int:
        """Cells of the slot that nobody has."""
        first = start // self.parts * self.parts
        slot = range(first, first + self.parts)
        return sum(not self.table.at(range(cell, cell + 1)) for cell in slot)

    def windows(self) -> st.SearchStrategy[list[range]]:
        """Up to two windows that are promised to others."""
        starts = st.integers(0, self.count - 1)
        return st.lists(st.builds(lambda start: range(start, start + 1), starts), max_size=2)


TestSlotTable = SlotTableMachine.TestCase
TestSlotTable.settings = settings(stateful_step_count=60)
