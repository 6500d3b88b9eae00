"""Every unfinished request: waiting for its adapter, ready in a lane, or running."""

import heapq
from collections.abc import Collection, Sequence

from chameleon_lora.policy.clusters import lane_of
from chameleon_lora.policy.entry import NEVER
from chameleon_lora.policy.lanes import Lane, Stage, Ticket
from chameleon_lora.policy.plan import Held, LaneState
from chameleon_lora.policy.quota import QuotaBook
from chameleon_lora.policy.request import AdapterId, RequestId
from chameleon_lora.policy.shares import Shares

NOBODY: dict[RequestId, Ticket] = {}


class Backlog:
    """Tickets by stage, lane and adapter. Owner: the scheduler.

    Invariant: a ticket is in exactly one stage, and in the indexes of that stage only.
    """

    def __init__(self) -> None:
        self._shares = Shares()
        self.lanes = [Lane(self._shares)]
        self.tickets: dict[RequestId, Ticket] = {}
        self.running: dict[RequestId, Ticket] = {}
        self._waiting_for: dict[AdapterId, dict[RequestId, Ticket]] = {}
        self._running_with: dict[AdapterId, dict[RequestId, Ticket]] = {}
        self._by_age: list[tuple[int, Ticket]] = []  # heap; those that are not READY go at the top

    def waiting_for(self, adapter_id: AdapterId) -> Collection[Ticket]:
        """The tickets that name the adapter and do not run, the oldest first."""
        return self._waiting_for.get(adapter_id, NOBODY).values()

    def running_with(self, adapter_id: AdapterId) -> Collection[Ticket]:
        """The running tickets that name the adapter, by admission."""
        return self._running_with.get(adapter_id, NOBODY).values()

    def oldest_for(self, adapter_id: AdapterId) -> Ticket | None:
        """The ticket among them that arrived first, or None."""
        waiting = self._waiting_for.get(adapter_id)
        return next(iter(waiting.values())) if waiting else None

    def has_passed(self, ticket: Ticket) -> bool:
        """True if a ticket that stood before it in its lane still waits there."""
        lane = self.lanes[ticket.lane]
        head = lane.head()
        return head is not None and lane.place(head) < lane.place(ticket)

    def left_tokens(self, step: int) -> dict[AdapterId | None, int]:
        """For each adapter in use, predicted steps until the last of its requests ends."""
        left: dict[AdapterId | None, int] = {}
        for ticket in self.running.values():
            adapter_id, tokens = ticket.request.adapter_id, ticket.left_tokens(step)
            if tokens > left.get(adapter_id, 0):
                left[adapter_id] = tokens
        return left

    def oldest(self) -> Ticket | None:
        """The ready ticket that arrived first, in whatever lane, or None. O(log n) amortised."""
        while self._by_age:
            ticket = self._by_age[0][1]
            if ticket.stage is Stage.READY:
                return ticket
            heapq.heappop(self._by_age)
            ticket.is_in_age_order = False
        return None

    def wait(self, ticket: Ticket, *, is_ready: bool) -> None:
        """Afterwards the ticket, new or taken from the running, waits: in its lane if ready."""
        request = ticket.request
        if request.id in self.tickets:
            self._shares.give_back(request.share, ticket.cost_tokens)
        self._shares.waits(request.share)
        self.tickets[request.id] = ticket
        adapter_id = request.adapter_id
        if adapter_id is not None:
            waiting = self._waiting_for.setdefault(adapter_id, {})
            is_latest = not waiting or waiting[next(reversed(waiting))].sequence < ticket.sequence
            waiting[request.id] = ticket
            if not is_latest:  # it ran before: back to its place, O(n log n)
                by_age = sorted(waiting.values(), key=lambda other: other.sequence)
                self._waiting_for[adapter_id] = {t.request.id: t for t in by_age}
            self._note_oldest(ticket)
        if is_ready:
            self._push(ticket)
        else:
            ticket.stage = Stage.LOADING

    def unpark(self, adapter_id: AdapterId) -> None:
        """The adapter is in host memory: who waited for it is ready."""
        for ticket in self.waiting_for(adapter_id):
            if ticket.stage is Stage.LOADING:
                self._push(ticket)

    def park(self, adapter_id: AdapterId) -> None:
        """The adapter left host memory: who was ready to use it waits for it again."""
        for ticket in self.waiting_for(adapter_id):
            if ticket.stage is Stage.READY:
                self.lanes[ticket.lane].leave(ticket, Stage.LOADING)

    def run(self, ticket: Ticket) -> bool:
        """A ready ticket runs from now on. Answers whether it passed one that stood before it."""
        self._stop_waiting(ticket)
        has_passed = self.has_passed(ticket)
        self._shares.charge(ticket.request.share, ticket.cost_tokens)
        self.running[ticket.request.id] = ticket
        adapter_id = ticket.request.adapter_id
        if adapter_id is not None:
            self._running_with.setdefault(adapter_id, {})[ticket.request.id] = ticket
        return has_passed

    def stop(self, ticket: Ticket) -> None:
        """A running ticket runs no more; the caller lets it wait or removes it."""
        del self.running[ticket.request.id]
        self._unindex(self._running_with, ticket)

    def remove(self, ticket: Ticket) -> None:
        """Afterwards the ticket, which is not running, is unknown."""
        if ticket.stage is not Stage.RUNNING:
            self._stop_waiting(ticket)
        del self.tickets[ticket.request.id]

    def recut(self, cutoffs: Sequence[float]) -> None:
        """Sort every ticket into new lanes by size. O(waiting)."""
        self.lanes = [Lane(self._shares) for _ in range(len(cutoffs) + 1)]
        for ticket in self.tickets.values():
            ticket.lane = lane_of(ticket.size, cutoffs)
            if ticket.stage is Stage.READY:
                self.lanes[ticket.lane].push(ticket)

    def lane_states(self, book: QuotaBook, held: Sequence[Held | None]) -> list[LaneState]:
        """Each lane as it stands. O(waiting)."""
        stages = [(ticket.lane, ticket.stage) for ticket in self.tickets.values()]
        states = []
        for lane, queue in enumerate(self.lanes):
            head = queue.head()
            states.append(
                LaneState(
                    lane=lane,
                    waiting=queue.ready,
                    loading=stages.count((lane, Stage.LOADING)),
                    running=stages.count((lane, Stage.RUNNING)),
                    quota_tokens=book.limits[lane].tokens,
                    used_tokens=book.used(lane).tokens,
                    head=head.request.id if head else None,
                    held=held[lane] if head else None,
                )
            )
        return states

    def _push(self, ticket: Ticket) -> None:
        self.lanes[ticket.lane].push(ticket)
        if not ticket.is_in_age_order:
            heapq.heappush(self._by_age, (ticket.sequence, ticket))
            ticket.is_in_age_order = True

    def _stop_waiting(self, ticket: Ticket) -> None:
        if ticket.stage is Stage.READY:
            self.lanes[ticket.lane].leave(ticket, Stage.RUNNING)
        ticket.stage = Stage.RUNNING
        self._shares.waits_no_more(ticket.request.share)
        self._unindex(self._waiting_for, ticket)
        self._note_oldest(ticket)

    def _note_oldest(self, ticket: Ticket) -> None:
        if ticket.entry is not None:
            oldest = self.oldest_for(ticket.entry.adapter.id)
            ticket.entry.oldest = NEVER if oldest is None else oldest.sequence

    @staticmethod
    def _unindex(index: dict[AdapterId, dict[RequestId, Ticket]], ticket: Ticket) -> None:
        adapter_id = ticket.request.adapter_id
        if adapter_id is not None:
            del index[adapter_id][ticket.request.id]
            if not index[adapter_id]:
                del index[adapter_id]
