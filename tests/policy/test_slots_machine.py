"""Which slot an adapter goes to, in any history: compared with searches that remember nothing."""

from collections.abc import Sequence

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule

from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.memory.slots import SlotTable
from chameleon_lora.policy.request import AdapterId
from tests.policy.engine_model import adapter

NUMBERS = st.integers(0, 11)
PROMISED = st.lists(st.integers(0, 5), max_size=2)


class SlotTableMachine(RuleBasedStateMachine):
    """Any history of a table, checked against searches that look at every slot anew."""

    @initialize(slots=st.integers(1, 6))
    def begin(self, slots: int) -> None:
        """An empty table."""
        self.table = SlotTable(slots)
        self.entries = {number: Entry(adapter(number)) for number in range(12)}
        self.worths: dict[int, float] = dict.fromkeys(self.entries, 0.0)

    @rule(avoid=PROMISED, number=NUMBERS)
    def bring(self, avoid: list[int], number: int) -> None:
        """Put an adapter where the table says, as Residency does: who is in its way leaves."""
        entry = self.entries[number]
        slot = self.table.try_find(avoid, self.keep_score)
        if entry.slot is not None or slot is None:
            return
        former = self.table.at(slot)
        if former is not None:
            self.table.remove(former)
        self.table.put(entry, slot)

    @rule()
    def fill(self) -> None:
        """Bring them all, so that slots without a tenant are rare."""
        for number in self.entries:
            self.bring([], number)

    @rule(number=NUMBERS)
    def start(self, number: int) -> None:
        """A request of the adapter runs."""
        entry = self.entries[number]
        if entry.slot is not None:
            if not entry.running:
                self.table.add_busy(1)
            entry.running += 1

    @rule(number=NUMBERS)
    def stop(self, number: int) -> None:
        """One of them ends."""
        entry = self.entries[number]
        if entry.running:
            entry.running -= 1
            if not entry.running:
                self.table.add_busy(-1)

    @rule(number=NUMBERS)
    def evict(self, number: int) -> None:
        """An idle adapter leaves host memory."""
        if not self.entries[number].running:
            self.table.remove(self.entries[number])

    @rule(
        queued=st.sets(NUMBERS),
        pinned=st.sets(NUMBERS),
        worths=st.lists(st.sampled_from((0.0, 0.25, 0.5, 1.0)), min_size=12, max_size=12),
    )
    def value(self, queued: set[int], pinned: set[int], worths: list[float]) -> None:
        """Requests come to wait, somebody pins, uses change what each is worth."""
        for number, entry in self.entries.items():
            entry.queued, entry.is_pinned = int(number in queued), number in pinned
        self.worths = dict(enumerate(worths))

    @rule(avoid=PROMISED)
    def find(self, avoid: list[int]) -> None:
        """What is found is the best of all slots, or there is none, remembered or not."""
        found = self.table.try_find(avoid, self.keep_score)
        allowed = {s: self.table.at(s) for s in range(self.table.count) if s not in avoid}
        harm = {s: self.harm(e) for s, e in allowed.items() if e is None or not e.running}
        assert (found is None) is (not harm)
        assert found is None or min(harm.values()) == harm[found]

    @rule(data=st.data())
    def ends(self, data: st.DataObject) -> None:
        """Each slot comes free when the last request of its adapter ends; idle ones are."""
        users = [number for number, entry in self.entries.items() if entry.running]
        drawn: dict[AdapterId | None, int] = {None: 7}  # requests without adapter count nowhere
        drawn.update({AdapterId(number): data.draw(st.integers(1, 9)) for number in users})
        occupants = [self.table.at(slot) for slot in range(self.table.count)]
        expected = [drawn[e.adapter.id] if e and e.running else 0 for e in occupants]
        assert expected == self.table.by_slot(drawn)

    @invariant()
    def everybody_has_its_own_slot(self) -> None:
        """No slot has two, and all that run are counted."""
        if not hasattr(self, "table"):
            return
        placed = {e.slot: e for e in self.entries.values() if e.slot is not None}
        found = {slot: self.table.at(slot) for slot in range(self.table.count)}
        assert placed == {slot: entry for slot, entry in found.items() if entry is not None}
        users = {entry.adapter.id for entry in self.entries.values() if entry.running}
        assert users <= {entry.adapter.id for entry in placed.values()}
        assert len(users) == self.table.busy
        assert users == set(self.table.in_use())

    def keep_score(self, entries: Sequence[Entry]) -> list[float]:
        """As drawn."""
        return [self.worths[entry.adapter.id] for entry in entries]

    def harm(self, entry: Entry | None) -> tuple[bool, bool, float]:
        """What its eviction costs: a pinned one first, then a needed one, then worth; -1 for nobody."""
        if entry is None:
            return (False, False, -1.0)
        return (entry.is_pinned, entry.queued > 0, self.worths[entry.adapter.id])


TestSlotTable = SlotTableMachine.TestCase
TestSlotTable.settings = settings(stateful_step_count=60)
