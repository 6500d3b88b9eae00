"""Slots that will come free, promised to heads that wait for one (PAPER §4.3.5, ADR 0008)."""

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass

from chameleon_lora.policy.admission.rules import Bypass
from chameleon_lora.policy.memory.entry import Entry
from chameleon_lora.policy.memory.slots import Slots
from chameleon_lora.policy.plan import Held
from chameleon_lora.policy.queues.backlog import Backlog
from chameleon_lora.policy.queues.lanes import RequestState
from chameleon_lora.policy.request import AdapterId, RequestId


@dataclass(slots=True, eq=False)
class Reservation:
    """A slot that will come free for `head`, which waits for one.

    Attributes:
        left_tokens: predicted decode steps until the last request on it ends.
    """

    head: RequestState
    slot: int
    left_tokens: int


class Reservations:
    """Who was promised which slot. Lives for one step."""

    def __init__(self, slots: Slots, bypass: Bypass) -> None:
        self._slots = slots
        self._bypass = bypass
        self._promises: list[Reservation] = []
        self._by_entry: dict[Entry, Reservation] = {}

    def promise(
        self, heads: Sequence[RequestState], left_tokens: Mapping[AdapterId | None, int]
    ) -> None:
        """The heads, in this order, get the slots that come free first: a quarter of them.

        `left_tokens`: for each adapter in use, predicted steps until its last request ends.
        """
        left = self._slots.by_slot(left_tokens)
        soonest = sorted((tokens, slot) for slot, tokens in enumerate(left))
        for head, (tokens, slot) in zip(heads[: max(1, len(left) // 4)], soonest, strict=False):
            reservation = Reservation(head, slot, tokens)
            self._promises.append(reservation)
            occupant = self._slots.at(slot)
            if occupant is not None:
                self._by_entry[occupant] = reservation

    def kept_from(self, state: RequestState) -> list[int]:
        """The slots promised to older heads."""
        return [r.slot for r in self._promises if r.head.sequence < state.sequence]

    def older_promise(self, state: RequestState, head: RequestState | None) -> Reservation | None:
        """The promise to an older head that holds only if the request, were it to run, ends before.

        `head` is the first of its lane.
        """
        if not self._by_entry:
            return None
        reservation = self._by_entry.get(state.entry) if state.entry else None
        if reservation is None and self._bypass.binds_all:
            reservation = next((r for r in self._promises if r.head is head), None)
        if reservation is None or reservation.head.sequence >= state.sequence:
            return None
        return reservation


def promise_breakers(
    backlog: Backlog,
    held: Sequence[Held | None],
    admitted: Sequence[RequestState],
    limit: int,
) -> tuple[RequestId, ...]:
    """All that run with one adapter, if a head would have its slot but for them; else nobody.

    They were let in on the promise to end before that head's slot came free, and did not. Each is
    squashed at most `limit` times, so that it ends some day; those admitted in this very step have
    not run yet and stay.
    """
    if limit == 0 or Held.SLOTS not in held:
        return ()
    heads = (
        lane.head() for lane, why in zip(backlog.lanes, held, strict=True) if why is Held.SLOTS
    )
    waiting = {head.sequence for head in heads if head}
    fresh = {state.request.adapter_id for state in admitted}
    promised = [t.request.adapter_id for t in backlog.running.values() if t.promised_to in waiting]
    for adapter_id in dict.fromkeys(promised):
        if adapter_id is None or adapter_id in fresh:
            continue
        running = backlog.running_with(adapter_id)
        if _all_broke(running, waiting, limit):
            return tuple(state.request.id for state in running)
    return ()


def _all_broke(running: Collection[RequestState], waiting: set[int], limit: int) -> bool:
    return all(t.promised_to in waiting and t.squashes < limit for t in running)
