"""Slots that will come free, promised to heads that wait for one (PAPER §4.3.5, ADR 0008)."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from chameleon_lora.policy.entry import Entry
from chameleon_lora.policy.lanes import Ticket
from chameleon_lora.policy.request import AdapterId
from chameleon_lora.policy.rules import Bypass
from chameleon_lora.policy.slots import Slots


@dataclass(slots=True, eq=False)
class Reservation:
    """A window of cells that will come free for `head`, which waits for one.

    Attributes:
        left_tokens: predicted decode steps until the last request on it ends.
    """

    head: Ticket
    window: range
    left_tokens: int


class Reservations:
    """Who was promised which window. Lives for one step."""

    def __init__(self, slots: Slots, bypass: Bypass) -> None:
        self._slots = slots
        self._bypass = bypass
        self._promises: list[Reservation] = []
        self._by_entry: dict[Entry, Reservation] = {}

    def promise(self, heads: Sequence[Ticket], left_tokens: Mapping[AdapterId | None, int]) -> None:
        """The heads, in this order, get the windows that come free first: a quarter of the slots.

        `left_tokens`: for each adapter in use, predicted steps until its last request ends.
        """
        left = self._slots.by_cell(left_tokens)
        for head in heads[: max(1, self._slots.count // 4)]:
            assert head.entry is not None
            taken = [r.window for r in self._promises]
            found = self._slots.first_to_end(head.entry.cells, left, taken)
            assert found is not None, "a reservation takes one slot at most, and there are more"
            reservation = Reservation(head, *found)
            self._promises.append(reservation)
            self._by_entry.update(dict.fromkeys(self._slots.at(found[0]), reservation))

    def kept_from(self, ticket: Ticket) -> list[range]:
        """The windows promised to older heads."""
        return [r.window for r in self._promises if r.head.sequence < ticket.sequence]

    def are_broken_by(self, ticket: Ticket, head: Ticket | None) -> bool:
        """True if running the ticket would keep an older head from the window it was promised.

        `head` is the first of its lane. Notes on the ticket whom it promises to end before.
        """
        ticket.promised_to = None
        if not self._by_entry:
            return False
        reservation = self._by_entry.get(ticket.entry) if ticket.entry else None
        if reservation is None and self._bypass is Bypass.PAPER:
            reservation = next((r for r in self._promises if r.head is head), None)
        if reservation is None or reservation.head.sequence >= ticket.sequence:
            return False
        if ticket.output_tokens > reservation.left_tokens:
            return True
        ticket.promised_to = reservation.head.sequence
        return False
