"""The policy as one state machine: facts in, step plan out. The one door to it.

A driver tells what happened (`arrived`, `loaded`, `finished`, ...) and asks `step` what to do now.
Time is an argument in seconds and never runs backwards. The same facts and seed give the same plans.
"""

from collections.abc import KeysView

from chameleon_lora.policy.admission.overtaking import AdmissionInterval
from chameleon_lora.policy.admission.step import AdmissionStep, StepStart
from chameleon_lora.policy.estimator import Estimator
from chameleon_lora.policy.memory.entry import Entry, Tier
from chameleon_lora.policy.memory.prefetch import Prefetcher
from chameleon_lora.policy.memory.residency import Residency
from chameleon_lora.policy.plan import Failure, Fault, Held, StepBudget, StepPlan
from chameleon_lora.policy.queues.backlog import Backlog
from chameleon_lora.policy.queues.calibration import Calibration
from chameleon_lora.policy.queues.lanes import RequestState, Stage
from chameleon_lora.policy.queues.quota import Quota, QuotaBook
from chameleon_lora.policy.request import Adapter, AdapterId, Request, RequestId
from chameleon_lora.policy.settings import EngineLimits, PolicySettings
from chameleon_lora.policy.view import AdapterView, DeviceView, PolicyView, RequestView


class Scheduler:
    """All unfinished requests and all registered adapters of one engine.

    Invariants: a request is in exactly one stage until it is finished or failed; what lanes have
    borrowed never exceeds their quotas; bytes in host memory never exceed the budget; an adapter with
    a running request is never evicted.
    """

    def __init__(self, settings: PolicySettings, limits: EngineLimits) -> None:
        self.settings = settings
        self.limits = limits
        self._residency = Residency(
            settings.cache, limits.slot_table(), settings.seed, settings.device, limits.kv_blocks
        )
        self._device = self._residency.device
        self._backlog = Backlog()
        self._calibration = Calibration(settings.lanes, Quota(limits.kv_tokens, limits.seats))
        self._estimator = Estimator(settings, limits.kv_bytes_per_token)
        self._prefetcher = Prefetcher(settings.prefetch, self._residency)
        self._book = QuotaBook(self._calibration.cut.quotas)
        self._interval = AdmissionInterval(settings.admission.every_steps)
        self._held: list[Held | None] = [None]
        self._drops: list[AdapterId] = []  # for the next plan
        self._fail: list[Failure] = []  # likewise

    # Facts about adapters

    def registered(self, adapter: Adapter) -> None:
        """An adapter became known; it is on disk."""
        self._residency.register(adapter)
        self._estimator.registered(adapter)

    def preloaded(self, adapter_id: AdapterId, now_s: float) -> None:
        """An adapter is in host memory from the start, if there is room; it was not read for anyone."""
        self._residency.preload(self._residency.entries[adapter_id], now_s)

    def unregistered(self, adapter_id: AdapterId) -> None:
        """An adapter is withdrawn: requests that name it run to their end, then it is forgotten."""
        entry = self._residency.entries[adapter_id]
        entry.is_leaving = True
        self._prefetcher.withdrawn(entry)
        self._forget_if_done(entry)

    def loaded(
        self, adapter_id: AdapterId, nbytes: int, rank: int, now_s: float, *, is_packed: bool = True
    ) -> None:
        """An adapter is in host memory, of this true size; packed, KV blocks can hold it too."""
        entry = self._residency.entries[adapter_id]
        self._prefetcher.ended(entry)
        self._residency.loaded(entry, nbytes, rank, is_packed=is_packed)
        self._backlog.unpark(adapter_id)
        self._drops += self._residency.overflow(now_s)
        self._forget_if_done(entry)

    def load_failed(
        self, adapter_id: AdapterId, reason: str, now_s: float, fault: Fault = Fault.SERVER
    ) -> None:
        """An adapter cannot be loaded: exactly the requests that wait for it end with this reason."""
        entry = self._residency.entries[adapter_id]
        self._residency.evict(entry)
        self._prefetcher.failed(entry, now_s)
        entry.failure = (reason, fault, now_s)
        self._fail_waiting(entry, reason, fault)

    def pin(self, adapter_id: AdapterId, *, is_pinned: bool) -> None:
        """Keep the adapter in memory from now on, reading it if need be; or no longer."""
        entry = self._residency.entries[adapter_id]
        self._residency.pin(entry, is_pinned=is_pinned)
        self._prefetcher.pinned(entry)

    # Facts about KV blocks

    def promoted(self, serial: int) -> None:
        """A promotion's copy is complete, unless it was called off meanwhile."""
        self._device.promoted(serial)

    def promotion_failed(self, serial: int, *, is_final: bool) -> None:
        """A promotion's copy cannot be made; with `is_final` none can, and there will be no more."""
        self._device.promotion_failed(serial, is_final=is_final)

    def prefix_missed(self, blocks: int, now_s: float) -> None:
        """A request would have found so many blocks cached, had adapters not taken them."""
        self._device.headroom.missed(blocks, now_s)

    def make_room(self, blocks: int, now_s: float) -> tuple[AdapterId, ...]:
        """Who gives KV blocks back at once: requests need so many more than are left by `held_blocks`.

        Who gave blocks back since the last plan is answered first, and is not told again.
        """
        return (*self._device.take_released(), *self._device.reclaim(blocks, now_s))

    def cache_emptied(self) -> tuple[AdapterId, ...]:
        """The KV cache is emptied: only what requests run from holds blocks; answers who gives any back."""
        return (*self._device.take_released(), *self._device.reset())

    # Facts about requests

    def arrived(self, request: Request, now_s: float) -> None:
        """A request came in. Its id is new, its adapter registered."""
        assert request.id not in self._backlog.states, f"request {request.id} arrived twice"
        entry = None if request.adapter_id is None else self._residency.entries[request.adapter_id]
        if entry is not None and request.next_use_s is not None:
            entry.next_use_s = request.next_use_s
        state = self._estimator.state(request, entry, now_s)
        state.lane = self._calibration.arrived(state.size, state.cost_tokens, now_s)
        self._prefetcher.arrived(entry, now_s)
        self._wait(state)
        if entry is not None and (failure := entry.standing_failure(now_s)):
            self._fail_waiting(entry, *failure)

    def requeued(self, request_id: RequestId, generated_tokens: int) -> None:
        """A running request is to run later: preempted, squashed, or not admitted after all."""
        state = self._backlog.running[request_id]
        self._stop(state)
        state.goes_back(generated_tokens)
        self._wait(state)

    def finished(self, request_id: RequestId, output_tokens: int, now_s: float) -> None:
        """A request ended, wherever it stood: complete, aborted or failed. Unknown ids are ignored.

        `output_tokens` teaches the length estimate if the request ran; 0 for an aborted one.
        """
        if (state := self._backlog.states.get(request_id)) is None:
            return
        entry = state.entry
        if state.stage is Stage.RUNNING:
            self._stop(state)
            if output_tokens:
                self._backlog.settle(state, output_tokens)
                self._estimator.ended(state, output_tokens, now_s)
                self._calibration.finished(state.size, now_s - state.admitted_s)
        elif entry is not None:
            self._residency.queue(entry, -1)
        self._backlog.remove(state)
        if entry is not None:
            self._forget_if_done(entry)

    def passed(self, steps: int) -> None:
        """The engine ran so many steps without a question, because nobody waited."""
        self._interval.passed(steps)

    def step(self, now_s: float, room: StepBudget) -> StepPlan:
        """What to do now. The plan is taken as carried out; `requeued` takes parts back."""
        self._interval.passed(1)
        if self._calibration.is_due(now_s):
            cut = self._calibration.recut(now_s)
            self._book.relimit(cut.quotas)
            self._backlog.recut(cut.cutoffs)
        loads = self._prefetcher.plan(now_s)
        for evicted in (adapter_id for load in loads for adapter_id in load.evicts):
            self._park(evicted)
        admission = self._admit(now_s, room)
        growth = room.growth_blocks + admission.taken_tokens // self.limits.block_tokens
        may_promote = self._interval.is_prefetching
        promotions = self._device.plan(now_s, room.free_blocks, growth) if may_promote else ()
        drops, fail, self._drops, self._fail = tuple(self._drops), tuple(self._fail), [], []
        return StepPlan(
            tuple(admission.admissions), admission.squash, tuple(loads), drops,
            tuple(admission.activations), fail, self._device.take_released(), promotions,
        )  # fmt: skip

    def _admit(self, now_s: float, room: StepBudget) -> AdmissionStep:
        """Let in whom this step lets in."""
        kv_tokens = self.limits.kv_tokens - self._device.busy_blocks * self.limits.block_tokens
        admission = AdmissionStep(
            self.settings.admission, self._interval, self._backlog, self._book, self._residency,
            self.limits.block_tokens, StepStart(now_s, room, kv_tokens, self._oldest_blocked(now_s)),
        )  # fmt: skip
        admission.run()
        self._held = admission.held
        for state in admission.admitted:
            self._estimator.admitted(state, now_s)
            state.admitted_step, state.admitted_s = self._interval.step, now_s
        return admission

    # Questions

    @property
    def adapters(self) -> KeysView[AdapterId]:
        """The adapters that are known, as they come and go. O(1)."""
        return self._residency.entries.keys()

    @property
    def running(self) -> KeysView[RequestId]:
        """The requests that run, by admission, as they come and go. O(1)."""
        return self._backlog.running.keys()

    @property
    def held_blocks(self) -> int:
        """KV blocks that adapters hold. O(1)."""
        return self._device.held_blocks

    @property
    def busy_blocks(self) -> int:
        """Of them, whose adapters run from them: 0 for engines with slots. O(1)."""
        return self._device.busy_blocks

    def promotion_due_s(self) -> float:
        """When a promotion may begin at the earliest; infinity while there is nothing to promote."""
        return self._device.due_s()

    def work_due_s(self) -> float:
        """When `step` has adapters to drop or read without any request; now while a read is under way."""
        return 0.0 if self._drops or self._fail else self._prefetcher.due_s()

    def adapter(self, adapter_id: AdapterId) -> AdapterView:
        """A known adapter as it is now. O(1)."""
        return AdapterView.of(self._residency.entries[adapter_id])

    def request(self, request_id: RequestId) -> RequestView:
        """An unfinished request as it is now. O(1)."""
        return RequestView.of(self._backlog.states[request_id])

    def bytes_if_pinned(self, adapter_id: AdapterId) -> int:
        """Bytes of all pinned adapters, were this one pinned too. O(pinned)."""
        return self._residency.bytes_if_pinned(self._residency.entries[adapter_id])

    def device(self, now_s: float) -> DeviceView:
        """The KV cache as adapters have it now. O(1)."""
        return DeviceView.of(self._device, now_s)

    def view(self, now_s: float) -> PolicyView:
        """Everything as it is now. O(adapters + requests): for pages and tests, not for steps."""
        lanes = self._backlog.lane_states(self._book, self._held)
        return PolicyView.of(lanes, self._residency, now_s)

    def _oldest_blocked(self, now_s: float) -> RequestState | None:
        """The oldest request whose adapter's load lacks room; those whose adapter is too large fail."""
        entry = self._prefetcher.blocked
        if entry is None:
            return None
        if failure := self._residency.why_too_large(entry):
            self._prefetcher.failed(entry, now_s)
            self._fail_waiting(entry, *failure)
        return None if failure else self._backlog.oldest_for(entry.adapter.id)

    def _wait(self, state: RequestState) -> None:
        entry = state.entry
        self._backlog.wait(state, is_ready=entry is None or entry.is_in_host)
        if entry is not None:
            self._residency.queue(entry, 1)
            self._prefetcher.want(entry, state.sequence)

    def _stop(self, state: RequestState) -> None:
        """The request runs no more: its quota and its slot's use return."""
        assert state.charge is not None
        self._book.give_back(state.charge)
        state.charge = None
        self._backlog.stop(state)
        if state.entry is not None:
            self._residency.stop(state.entry)

    def _fail_waiting(self, entry: Entry, reason: str, fault: Fault) -> None:
        """Exactly the requests that wait for the adapter end with this reason."""
        for state in list(self._backlog.waiting_for(entry.adapter.id)):
            self._residency.queue(entry, -1)
            self._backlog.remove(state)
            self._fail.append(Failure(state.request.id, entry.adapter.id, reason, fault))
        self._forget_if_done(entry)

    def _park(self, adapter_id: AdapterId) -> None:
        """An adapter that waiting requests need left host memory for an older request's."""
        self._backlog.park(adapter_id)
        if (entry := self._residency.entries[adapter_id]).queued:
            self._prefetcher.want(entry, entry.oldest)

    def _forget_if_done(self, entry: Entry) -> None:
        """Drop an adapter that nobody names any more, if it is leaving."""
        if entry.running or entry.queued or entry.tier is Tier.LOADING:
            return
        self._prefetcher.unwant(entry)
        if entry.is_in_host and entry.is_leaving:
            self._drops.append(self._residency.evict(entry))
        if entry.is_leaving:
            self._residency.forget(entry)
            self._estimator.lengths.forget(entry.adapter.id)
