"""The policy as one state machine: facts in, step plan out.

A driver tells what happened (`arrived`, `loaded`, `finished`, ...) and asks `step` what to do now.
Time is an argument in seconds and never runs backwards. The same facts and seed give the same plans.
"""

from chameleon_lora.policy.admission import Round
from chameleon_lora.policy.backlog import Backlog
from chameleon_lora.policy.cadence import Cadence
from chameleon_lora.policy.calibration import Calibration
from chameleon_lora.policy.entry import NEVER, Entry, Tier
from chameleon_lora.policy.intake import Intake
from chameleon_lora.policy.lanes import Stage, Ticket
from chameleon_lora.policy.patience import Patience
from chameleon_lora.policy.peak import Peak
from chameleon_lora.policy.plan import Admission, Draft, Failure, Held, LaneState, StepPlan
from chameleon_lora.policy.prefetch import Prefetcher
from chameleon_lora.policy.quota import Quota, QuotaBook
from chameleon_lora.policy.request import Adapter, AdapterId, Request, RequestId
from chameleon_lora.policy.residency import Residency
from chameleon_lora.policy.room import Room
from chameleon_lora.policy.rules import Reserve
from chameleon_lora.policy.settings import EngineLimits, PolicySettings
from chameleon_lora.policy.squash import promise_breakers


class Scheduler:
    """All unfinished requests and all registered adapters of one engine.

    Invariants: a request is in exactly one stage until it is finished or failed; what lanes have
    borrowed never exceeds their quotas; bytes in host memory never exceed the budget; an adapter with
    a running request is never evicted.
    """

    def __init__(self, settings: PolicySettings, limits: EngineLimits) -> None:
        self.settings = settings
        self.limits = limits
        self.residency = Residency(
            settings.cache, limits.slot_table(), settings.seed, settings.device, limits.kv_blocks
        )
        self.device = self.residency.device
        self.backlog = Backlog()
        self._calibration = Calibration(settings.lanes, Quota(limits.kv_tokens, limits.seats))
        self._intake = Intake(settings, limits.kv_bytes_per_token)
        self._prefetcher = Prefetcher(settings.prefetch, self.residency)
        self._book = QuotaBook(self._calibration.cut.quotas)
        self._held: list[Held | None] = [None]
        self._draft = Draft()
        self._cadence = Cadence(settings.admission.every_steps)

    # Facts about adapters

    def registered(self, adapter: Adapter) -> None:
        """An adapter became known; it is on disk."""
        self.residency.register(adapter)
        self._intake.registered(adapter)

    def unregistered(self, adapter_id: AdapterId) -> None:
        """An adapter is withdrawn: requests that name it run to their end, then it is forgotten."""
        entry = self.residency.entries[adapter_id]
        entry.is_leaving = True
        self._prefetcher.withdrawn(entry)
        self._forget_if_done(entry)

    def loaded(
        self, adapter_id: AdapterId, nbytes: int, rank: int, now_s: float, *, is_packed: bool = True
    ) -> None:
        """An adapter is in host memory, of this true size; packed, KV blocks can hold it too."""
        self._prefetcher.ended(adapter_id)
        entry = self.residency.entries[adapter_id]
        self.residency.loaded(entry, nbytes, rank, is_packed=is_packed)
        entry.failure = None
        self.backlog.unpark(adapter_id)
        self._draft.drops += self.residency.overflow(now_s)
        self._forget_if_done(entry)

    def load_failed(self, adapter_id: AdapterId, reason: str, now_s: float) -> None:
        """An adapter cannot be loaded: exactly the requests that wait for it end with this reason."""
        self._prefetcher.ended(adapter_id)
        entry = self.residency.entries[adapter_id]
        self.residency.evict(entry)
        entry.failure = (reason, now_s)
        self._fail_waiting(entry, reason)

    def pin(self, adapter_id: AdapterId, *, is_pinned: bool) -> None:
        """Keep the adapter in memory from now on, reading it if need be; or no longer."""
        entry = self.residency.entries[adapter_id]
        self.residency.pin(entry, is_pinned=is_pinned)
        if is_pinned:
            self._prefetcher.want(entry, NEVER)

    # Facts about requests

    def arrived(self, request: Request, now_s: float) -> None:
        """A request came in. Its id is new, its adapter registered."""
        assert request.id not in self.backlog.tickets, f"request {request.id} arrived twice"
        entry = None if request.adapter_id is None else self.residency.entries[request.adapter_id]
        ticket = self._intake.ticket(request, entry, now_s)
        ticket.lane = self._calibration.arrived(ticket.size, ticket.cost_tokens, now_s)
        self._prefetcher.arrived(entry, now_s)
        self._wait(ticket)
        if entry is not None and (reason := entry.failed_lately(now_s)):
            self._fail_waiting(entry, reason)

    def requeued(self, request_id: RequestId, generated_tokens: int) -> None:
        """A running request is to run later: preempted, squashed, or not admitted after all."""
        ticket = self.backlog.running[request_id]
        self._stop(ticket)
        ticket.goes_back(generated_tokens)
        self._wait(ticket)

    def finished(self, request_id: RequestId, output_tokens: int, now_s: float) -> None:
        """A request ended, wherever it stood: complete, aborted or failed. Unknown ids are ignored.

        `output_tokens` teaches the length estimate if the request ran; 0 for an aborted one.
        """
        ticket = self.backlog.tickets.get(request_id)
        if ticket is None:
            return
        entry = ticket.entry
        if ticket.stage is Stage.RUNNING:
            self._stop(ticket)
            if output_tokens:
                self._intake.ended(ticket, output_tokens, now_s)
                self._calibration.finished(ticket.size, now_s - ticket.admitted_s)
        elif entry is not None:
            self.residency.queue(entry, -1)
        self.backlog.remove(ticket)
        if entry is not None:
            self._forget_if_done(entry)

    # The decision

    def step(self, now_s: float, room: Room) -> StepPlan:
        """What to do now. The plan is taken as carried out; `requeued` takes parts back."""
        self._cadence.passed(1)
        if self._calibration.is_due(now_s):
            cut = self._calibration.recut(now_s)
            self._book.relimit(cut.quotas)
            self.backlog.recut(cut.cutoffs)
        loads = self._prefetcher.plan(now_s)
        for evicted in (adapter_id for load in loads for adapter_id in load.evicts):
            self._park(evicted)
        squash, taken_blocks = self._admit(now_s, room, self._oldest_blocked())
        growth = room.growth_blocks + taken_blocks
        may_promote = self._cadence.is_prefetching
        promotions = self.device.plan(now_s, room.free_blocks, growth) if may_promote else ()
        draft, self._draft = self._draft, Draft()
        return draft.plan(squash, loads, self.device.take_released(), promotions)

    def _admit(
        self, now_s: float, room: Room, blocked: Ticket | None
    ) -> tuple[tuple[RequestId, ...], int]:
        """Let in whom the round admits; answers whom it squashes, and what KV blocks it takes."""
        settings = self.settings.admission
        if not (self._cadence.is_admitting or room.is_empty):
            self._held = [Held.CADENCE] * len(self.backlog.lanes)
            return (), 0
        free_tokens = self.limits.kv_tokens - self.device.busy_blocks * self.limits.block_tokens
        running, step = self.backlog.running.values(), self._cadence.step
        turn = Round(
            self.backlog.lanes, self._book, self.residency, room, settings, self.limits.block_tokens,
            lambda ticket, cell: self._run(ticket, cell, now_s),
        )  # fmt: skip
        turn.run(
            lambda: self.backlog.left_tokens(step),
            Patience(self.backlog.oldest, blocked, settings.overtake_limit),
            now_s,
            Peak(running, step, free_tokens) if settings.reserve is Reserve.PEAK else None,
        )
        self._held = turn.held
        if turn.admitted:
            self._cadence.admitted()
        squashed = promise_breakers(self.backlog, turn.held, turn.admitted, settings.squash_limit)
        return squashed, turn.taken_tokens // self.limits.block_tokens

    def passed(self, steps: int) -> None:
        """The engine ran so many steps without a question, because nobody waited."""
        self._cadence.passed(steps)

    def _oldest_blocked(self) -> Ticket | None:
        """The oldest request whose adapter's load lacks room; those whose adapter is too large fail."""
        entry = self._prefetcher.blocked
        if entry is None:
            return None
        if reason := self.residency.why_too_large(entry):
            self._fail_waiting(entry, reason)
        return None if reason else self.backlog.oldest_for(entry.adapter.id)

    def _run(self, ticket: Ticket, cell: int | None, now_s: float) -> None:
        """Carry out one admission; its adapter goes to this cell if it is in no slot yet."""
        entry = ticket.entry
        is_bypass = self.backlog.run(ticket)
        self._intake.admitted(ticket, now_s)
        ticket.admitted_step, ticket.admitted_s = self._cadence.step, now_s
        if entry is not None:
            if cell is not None:
                self._draft.activate(entry.adapter.id, cell, is_cold=entry.is_cold)
                self.residency.activate(entry, cell)
            self.residency.start(entry, now_s)
        request = ticket.request
        self._draft.admit.append(Admission(request.id, request.adapter_id, ticket.lane, is_bypass))

    def lane_states(self) -> list[LaneState]:
        """Each lane as it stands after the last step. O(waiting): for pages, not for steps."""
        return self.backlog.lane_states(self._book, self._held)

    # Steps of a request's way

    def _wait(self, ticket: Ticket) -> None:
        entry = ticket.entry
        self.backlog.wait(ticket, is_ready=entry is None or entry.is_in_host)
        if entry is not None:
            self.residency.queue(entry, 1)
            self._prefetcher.want(entry, ticket.sequence)

    def _stop(self, ticket: Ticket) -> None:
        """Take a running ticket off its slot; its quota returns."""
        assert ticket.charge is not None
        self._book.give_back(ticket.charge)
        ticket.charge = None
        self.backlog.stop(ticket)
        if ticket.entry is not None:
            self.residency.stop(ticket.entry)

    def _fail_waiting(self, entry: Entry, reason: str) -> None:
        """Exactly the requests that wait for the adapter end with this reason."""
        for ticket in list(self.backlog.waiting_for(entry.adapter.id)):
            self.residency.queue(entry, -1)
            self.backlog.remove(ticket)
            self._draft.fail.append(Failure(ticket.request.id, entry.adapter.id, reason))
        self._forget_if_done(entry)

    def _park(self, adapter_id: AdapterId) -> None:
        """An adapter that waiting requests need left host memory for an older request's."""
        self.backlog.park(adapter_id)
        entry = self.residency.entries[adapter_id]
        if entry.queued:
            self._prefetcher.want(entry, entry.oldest)

    def _forget_if_done(self, entry: Entry) -> None:
        """Drop an adapter that nobody names any more, if it is leaving."""
        if entry.running or entry.queued or entry.tier is Tier.LOADING:
            return
        self._prefetcher.unwant(entry)
        if entry.is_in_host and entry.is_leaving:
            self._draft.drops.append(self.residency.evict(entry))
        if entry.is_leaving:
            self.residency.forget(entry)
            self._intake.lengths.forget(entry.adapter.id)
