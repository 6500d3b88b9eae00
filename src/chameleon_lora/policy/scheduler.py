"""The policy as one state machine: facts in, step plan out.

A driver tells what happened (`arrived`, `loaded`, `finished`, ...) and asks `step` what to do now.
Time is an argument in seconds and never runs backwards. The same facts and seed give the same plans.
"""

from collections.abc import KeysView

from chameleon_lora.policy.admission.aging import AdmissionInterval, OvertakeGuard
from chameleon_lora.policy.admission.peak import Peak
from chameleon_lora.policy.admission.reservations import promise_breakers
from chameleon_lora.policy.admission.rules import Reserve
from chameleon_lora.policy.admission.step import AdmissionStep
from chameleon_lora.policy.estimator import Estimator
from chameleon_lora.policy.memory.entry import NEVER, Entry, Tier
from chameleon_lora.policy.memory.prefetch import Prefetcher
from chameleon_lora.policy.memory.residency import Residency
from chameleon_lora.policy.plan import (
    Admission,
    Failure,
    Held,
    LaneState,
    PlanBuilder,
    StepBudget,
    StepPlan,
)
from chameleon_lora.policy.queues.backlog import Backlog
from chameleon_lora.policy.queues.calibration import Calibration
from chameleon_lora.policy.queues.lanes import RequestState, Stage
from chameleon_lora.policy.queues.quota import Quota, QuotaBook
from chameleon_lora.policy.request import Adapter, AdapterId, Request, RequestId
from chameleon_lora.policy.settings import EngineLimits, PolicySettings


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
        self._estimator = Estimator(settings, limits.kv_bytes_per_token)
        self._prefetcher = Prefetcher(settings.prefetch, self.residency)
        self._book = QuotaBook(self._calibration.cut.quotas)
        self._held: list[Held | None] = [None]
        self._next_plan = PlanBuilder()
        self._interval = AdmissionInterval(settings.admission.every_steps)

    # Facts about adapters

    def registered(self, adapter: Adapter) -> None:
        """An adapter became known; it is on disk."""
        self.residency.register(adapter)
        self._estimator.registered(adapter)

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
        self._next_plan.drops += self.residency.overflow(now_s)
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
        assert request.id not in self.backlog.states, f"request {request.id} arrived twice"
        entry = None if request.adapter_id is None else self.residency.entries[request.adapter_id]
        state = self._estimator.state(request, entry, now_s)
        state.lane = self._calibration.arrived(state.size, state.cost_tokens, now_s)
        self._prefetcher.arrived(entry, now_s)
        self._wait(state)
        if entry is not None and (reason := entry.failed_lately(now_s)):
            self._fail_waiting(entry, reason)

    def requeued(self, request_id: RequestId, generated_tokens: int) -> None:
        """A running request is to run later: preempted, squashed, or not admitted after all."""
        state = self.backlog.running[request_id]
        self._stop(state)
        state.goes_back(generated_tokens)
        self._wait(state)

    def finished(self, request_id: RequestId, output_tokens: int, now_s: float) -> None:
        """A request ended, wherever it stood: complete, aborted or failed. Unknown ids are ignored.

        `output_tokens` teaches the length estimate if the request ran; 0 for an aborted one.
        """
        state = self.backlog.states.get(request_id)
        if state is None:
            return
        entry = state.entry
        if state.stage is Stage.RUNNING:
            self._stop(state)
            if output_tokens:
                self._estimator.ended(state, output_tokens, now_s)
                self._calibration.finished(state.size, now_s - state.admitted_s)
        elif entry is not None:
            self.residency.queue(entry, -1)
        self.backlog.remove(state)
        if entry is not None:
            self._forget_if_done(entry)

    # The decision

    def step(self, now_s: float, room: StepBudget) -> StepPlan:
        """What to do now. The plan is taken as carried out; `requeued` takes parts back."""
        self._interval.passed(1)
        if self._calibration.is_due(now_s):
            cut = self._calibration.recut(now_s)
            self._book.relimit(cut.quotas)
            self.backlog.recut(cut.cutoffs)
        loads = self._prefetcher.plan(now_s)
        for evicted in (adapter_id for load in loads for adapter_id in load.evicts):
            self._park(evicted)
        squash, taken_blocks = self._admit(now_s, room, self._oldest_blocked())
        growth = room.growth_blocks + taken_blocks
        may_promote = self._interval.is_prefetching
        promotions = self.device.plan(now_s, room.free_blocks, growth) if may_promote else ()
        next_plan, self._next_plan = self._next_plan, PlanBuilder()
        return next_plan.plan(squash, loads, self.device.take_released(), promotions)

    def _admit(
        self, now_s: float, room: StepBudget, blocked: RequestState | None
    ) -> tuple[tuple[RequestId, ...], int]:
        """Let in whom the round admits; answers whom it squashes, and what KV blocks it takes."""
        settings = self.settings.admission
        if not (self._interval.is_admitting or room.is_empty):
            self._held = [Held.INTERVAL] * len(self.backlog.lanes)
            return (), 0
        free_tokens = self.limits.kv_tokens - self.device.busy_blocks * self.limits.block_tokens
        running, step = self.backlog.running.values(), self._interval.step
        turn = AdmissionStep(
            self.backlog.lanes, self._book, self.residency, room, settings, self.limits.block_tokens,
            lambda state, cell: self._run(state, cell, now_s),
        )  # fmt: skip
        turn.run(
            lambda: self.backlog.left_tokens(step),
            OvertakeGuard(self.backlog.oldest, blocked, settings.overtake_limit),
            now_s,
            Peak(running, step, free_tokens) if settings.reserve is Reserve.PEAK else None,
        )
        self._held = turn.held
        if turn.admitted:
            self._interval.admitted()
        squashed = promise_breakers(self.backlog, turn.held, turn.admitted, settings.squash_limit)
        return squashed, turn.taken_tokens // self.limits.block_tokens

    def passed(self, steps: int) -> None:
        """The engine ran so many steps without a question, because nobody waited."""
        self._interval.passed(steps)

    def _oldest_blocked(self) -> RequestState | None:
        """The oldest request whose adapter's load lacks room; those whose adapter is too large fail."""
        entry = self._prefetcher.blocked
        if entry is None:
            return None
        if reason := self.residency.why_too_large(entry):
            self._fail_waiting(entry, reason)
        return None if reason else self.backlog.oldest_for(entry.adapter.id)

    def _run(self, state: RequestState, cell: int | None, now_s: float) -> None:
        """Carry out one admission; its adapter goes to this cell if it is in no slot yet."""
        entry = state.entry
        is_bypass = self.backlog.run(state)
        self._estimator.admitted(state, now_s)
        state.admitted_step, state.admitted_s = self._interval.step, now_s
        if entry is not None:
            if cell is not None:
                self._next_plan.activate(entry.adapter.id, cell, is_cold=entry.is_cold)
                self.residency.activate(entry, cell)
            self.residency.start(entry, now_s)
        request = state.request
        self._next_plan.admit.append(
            Admission(request.id, request.adapter_id, state.lane, is_bypass)
        )

    @property
    def adapters(self) -> KeysView[AdapterId]:
        """The adapters that are known, as they come and go. O(1)."""
        return self.residency.entries.keys()

    def work_due_s(self) -> float:
        """When `step` has adapters to drop or to read at the earliest, though no request comes or ends.

        0 for at once, infinity for never. While a read is under way it is at once, too, for its end
        is yet to be told; what lacks room waits for something else to happen.
        """
        return 0.0 if self._next_plan.drops or self._next_plan.fail else self._prefetcher.due_s()

    def lane_states(self) -> list[LaneState]:
        """Each lane as it stands after the last step. O(waiting): for pages, not for steps."""
        return self.backlog.lane_states(self._book, self._held)

    # Steps of a request's way

    def _wait(self, state: RequestState) -> None:
        entry = state.entry
        self.backlog.wait(state, is_ready=entry is None or entry.is_in_host)
        if entry is not None:
            self.residency.queue(entry, 1)
            self._prefetcher.want(entry, state.sequence)

    def _stop(self, state: RequestState) -> None:
        """Take a running ticket off its slot; its quota returns."""
        assert state.charge is not None
        self._book.give_back(state.charge)
        state.charge = None
        self.backlog.stop(state)
        if state.entry is not None:
            self.residency.stop(state.entry)

    def _fail_waiting(self, entry: Entry, reason: str) -> None:
        """Exactly the requests that wait for the adapter end with this reason."""
        for state in list(self.backlog.waiting_for(entry.adapter.id)):
            self.residency.queue(entry, -1)
            self.backlog.remove(state)
            self._next_plan.fail.append(Failure(state.request.id, entry.adapter.id, reason))
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
            self._next_plan.drops.append(self.residency.evict(entry))
        if entry.is_leaving:
            self.residency.forget(entry)
            self._estimator.lengths.forget(entry.adapter.id)
