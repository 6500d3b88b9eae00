"""A model of an engine, step by step, which the policy drives as it drives vLLM."""

from chameleon_lora.metrics.step_work import StepWork
from chameleon_lora.policy.plan import Admission, StepBudget, StepPlan
from chameleon_lora.policy.request import Adapter, AdapterId, Request, RequestId
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.sim.adapter_copies import AdapterCopies
from chameleon_lora.sim.batch import Batch, RunningRequest
from chameleon_lora.sim.gaps import TokenGaps
from chameleon_lora.sim.kernel import Action, Kernel, Priority
from chameleon_lora.sim.outcome import Found, SimOutcome, SimRecord
from chameleon_lora.sim.setup import Setup
from chameleon_lora.workload.requests import TimedRequest

POLL_S = 0.001  # after what time at least an engine looks again if nobody runs and somebody waits
LOOK_AHEAD_S = 0.1  # after what time at most, also if adapters are prefetched by forecast

Uses = dict[AdapterId, tuple[Found, float]]
Waiting = tuple[TimedRequest, int, float | None]  # and tokens generated before, the last one when


class Engine:
    """One engine in simulated time. Lives with a run."""

    def __init__(self, setup: Setup, kernel: Kernel, outcome: SimOutcome) -> None:
        self._setup = setup
        self._kernel = kernel
        self._outcome = outcome
        self._style = setup.style
        self._step_s = setup.profile.step.step_s
        limits = setup.limits
        self.policy = Scheduler(setup.policy, limits)
        self._batch = Batch(limits.block_tokens)
        self._gaps = TokenGaps(outcome.gaps)
        self._kv_blocks = outcome.kv_blocks = limits.kv_blocks.count
        self._adapters: dict[AdapterId, Adapter] = {}
        self.copies = AdapterCopies(setup.profile, self.policy, kernel, self._adapters)
        self._ids: dict[str, AdapterId] = {}
        self._waiting: dict[RequestId, Waiting] = {}
        self._records: dict[RequestId, SimRecord] = {}
        self._looks_ahead = setup.policy.prefetch.predicted
        self._is_awake = False
        self._ready: list[RunningRequest] = []  # prompts are complete after the step under way
        self._register()

    def _register(self) -> None:
        """All adapters are known, and in host memory if the engine begins so."""
        for number, adapter in enumerate(self._setup.adapters, start=1):
            nbytes = self._setup.profile.adapter_bytes(adapter.rank)
            adapter_id = self._ids[adapter.name] = AdapterId(number)
            known = Adapter(adapter_id, adapter.name, adapter.rank, nbytes)
            self._adapters[adapter_id] = known
            self.policy.registered(known)
            if self._style.is_preloaded:
                self.policy.preloaded(adapter_id, 0.0)

    def arrive(self, request: TimedRequest, next_use_s: float, now_s: float) -> None:
        """A client's request comes in; the next one that names its adapter will at `next_use_s`."""
        request_id = RequestId(str(request.index))
        adapter_id = None if request.adapter is None else self._ids[request.adapter]
        record = self._records[request_id] = SimRecord(request)
        self._outcome.records.append(record)
        self._waiting[request_id] = (request, 0, None)
        limit = max(self._setup.output_limit_tokens or 0, request.output_tokens)
        self.policy.arrived(
            Request(
                id=request_id,
                adapter_id=adapter_id,
                input_tokens=request.input_tokens,
                max_output_tokens=limit,
                output_hint_tokens=self._setup.foretell(request),
                next_use_s=next_use_s,
            ),
            now_s,
        )
        if not self._is_awake:
            self._is_awake = True
            self._kernel.plan(now_s, Priority.STEP, self._begin)

    # One step

    def _begin(self, now_s: float) -> None:
        """Ask for a plan, if there is anything to plan, carry it out, and compute."""
        batch, ready_s = self._batch, now_s
        if self._waiting or self._looks_ahead or self.policy.promotion_due_s() <= now_s:
            ready_s = self._carry_out(self.policy.step(now_s, self._room()), now_s)
        else:
            self.policy.passed(1)
        self._make_room(now_s)
        if not batch.runs:
            self._is_awake = bool(self._waiting)
            if self._waiting:
                event_s = min(self._kernel.next_s(), now_s + LOOK_AHEAD_S)
                self._kernel.plan(max(event_s, now_s + POLL_S), Priority.STEP, self._begin)
        elif batch.prefilling and not self._style.mixes_prefill:
            self._prefill(now_s, ready_s)
        else:
            self._compute(now_s, ready_s)

    def _room(self) -> StepBudget:
        """What the policy is told before a step."""
        batch, policy, size = self._batch, self.policy, self._setup.profile.memory.block_tokens
        planned = batch.decoding + sum(run.left_tokens for run in batch.prefilling.values())
        return StepBudget(
            seats=self._style.seats - len(batch.runs),
            kv_tokens=(self._kv_blocks - batch.used_blocks - policy.busy_blocks) * size,
            batch_tokens=self._style.batch_tokens - (planned if self._style.mixes_prefill else 0),
            is_empty=not batch.runs,
            free_blocks=self._kv_blocks - batch.used_blocks - policy.held_blocks,
            growth_blocks=batch.growth_blocks(),
        )

    def _prefill(self, now_s: float, ready_s: float) -> None:
        """Whole prompts, before the others decode: one iteration of both."""
        work = StepWork()
        self._ready = self._batch.prefill(None, work)
        ranks = {run.adapter_id: run.rank for run in self._ready if run.adapter_id is not None}
        work.adapters, work.adapter_ranks = len(ranks), sum(ranks.values())
        self._end_at(now_s, ready_s + self._step_s(work), 0, self._end_prefill)

    def _compute(self, now_s: float, ready_s: float) -> None:
        """A token for all who decode, and a chunk of prompts beside."""
        batch, work, steps = self._batch, StepWork(), 1
        batch.load(work)
        if batch.prefilling:
            self._ready = batch.prefill(self._style.batch_tokens - batch.decoding, work)
            first_s = end_s = ready_s + self._step_s(work)
        else:
            first_s, end_s, steps = self._decode_ahead(now_s, ready_s, work)
        growth = batch.growth_blocks_in(steps)
        self._end_at(now_s, end_s, growth, lambda end_s: self._end_decode(first_s, end_s, steps))

    def _decode_ahead(
        self, now_s: float, ready_s: float, work: StepWork
    ) -> tuple[float, float, int]:
        """When the first and the last of so many like steps end, in which nothing else happens.

        The policy is asked before each step unless nobody waits: then it would have nothing to say.
        """
        batch = self._batch
        most = 1 if self._waiting else batch.steps_to_end()
        if (
            batch.growth_blocks_in(most)
            > self._kv_blocks - batch.used_blocks - self.policy.held_blocks
        ):
            most = 1
        until_s = min(self._kernel.next_s(), self.policy.promotion_due_s())
        if self._looks_ahead:
            until_s = min(until_s, now_s + LOOK_AHEAD_S)
        step_s, steps = self._step_s(work), 1
        more_s = self._setup.profile.step.context_token_s * batch.decoding
        first_s = end_s = ready_s + step_s
        while steps < most and end_s < until_s:
            step_s += more_s
            end_s += step_s
            steps += 1
        self.policy.passed(steps - 1)
        return first_s, end_s, steps

    def _end_at(self, now_s: float, end_s: float, growth: int, action: Action) -> None:
        """Steps end then, in which those who run take so many blocks more."""
        outcome, used = self._outcome, self._batch.used_blocks
        outcome.used_block_s += (used + growth / 2) * (end_s - now_s)
        outcome.peak_blocks = max(outcome.peak_blocks, used + growth)
        outcome.held_block_s += self.policy.held_blocks * (end_s - now_s)
        self._kernel.plan(end_s, Priority.STEP, action)

    def _end_prefill(self, now_s: float) -> None:
        self._outcome.steps += 1
        self._join(now_s)
        if self._batch.decoding:
            self._make_room(now_s)
            self._compute(now_s, now_s)
        else:
            self._begin(now_s)

    def _end_decode(self, first_s: float, now_s: float, steps: int) -> None:
        self._outcome.steps += steps
        self._gaps.decoded(self._batch.decoding, first_s, now_s, steps)
        self._batch.decode(steps)
        for run in self._batch.ended():
            self._end(run, now_s)
        self._join(now_s)
        self._begin(now_s)

    def _join(self, now_s: float) -> None:
        """Requests whose prompts are complete have a first token."""
        ready, self._ready = self._ready, []
        for run in ready:
            record = self._records[run.request_id]
            if record.first_s is None:
                record.first_s = now_s
            is_decoding = self._batch.join(run)
            self._gaps.joined(run.last_s, now_s, is_decoding=is_decoding)
            run.last_s = now_s
            if not is_decoding:
                self._end(run, now_s)

    def _end(self, run: RunningRequest, now_s: float) -> None:
        self._records.pop(run.request_id).end_s = self._outcome.duration_s = now_s
        self.policy.finished(run.request_id, run.request.output_tokens, now_s)

    # The plan

    def _carry_out(self, plan: StepPlan, now_s: float) -> float:
        """Do what the plan says; answers when the adapters of the step are there."""
        for failure in plan.fail:
            if self._waiting.pop(failure.request_id, None):
                self._records.pop(failure.request_id).failure = failure.reason
        for request_id in plan.squash:
            self._outcome.squashes += 1
            self._requeue(self._batch.runs[request_id])
        self.copies.gone(plan.demotions)
        for load in plan.loads:
            self.copies.load(load, now_s)
        ready_s, uses = now_s, Uses()
        for activation in plan.activations:
            found, ready_s = self.copies.activate(activation, ready_s)
            uses[activation.adapter_id] = (found, ready_s - now_s)
        for admission in plan.admit:
            self._admit(admission, uses, now_s)
        for promotion in plan.promotions:
            self.copies.promote(promotion, now_s)
        return ready_s

    def _admit(self, admission: Admission, uses: Uses, now_s: float) -> None:
        request, generated, last_s = self._waiting.pop(admission.request_id)
        record, rank, adapter_id = self._records[admission.request_id], 0, admission.adapter_id
        if record.admitted_s is None:
            record.admitted_s, record.lane = now_s, admission.lane
            if adapter_id is not None:
                found = Found.IN_USE if self._batch.has(adapter_id) else Found.DEVICE
                record.found, record.load_s = uses.get(adapter_id, (found, 0.0))
        if adapter_id is not None:
            rank = self._adapters[adapter_id].rank
            rank = max(rank, self._style.max_rank) if self._style.pads_ranks else rank
        self._batch.admit(
            RunningRequest(
                request_id=admission.request_id,
                request=request,
                adapter_id=adapter_id,
                rank=rank,
                left_tokens=request.input_tokens + generated,
                generated=generated,
                last_s=last_s,
            )
        )

    def _make_room(self, now_s: float) -> None:
        """KV blocks for all who run and for what they grow by: adapters give theirs, then preemption."""
        while (lacking := self._lacking_blocks()) > 0:
            self.copies.gone(self.policy.make_room(lacking, now_s))
            if self._lacking_blocks() <= 0 or len(self._batch.runs) == 1:
                return
            self._outcome.preemptions += 1
            self._requeue(next(reversed(self._batch.runs.values())))

    def _lacking_blocks(self) -> int:
        """By how much those who run, what they grow by and adapters are above the pool."""
        batch = self._batch
        return batch.growth_blocks() + batch.used_blocks + self.policy.held_blocks - self._kv_blocks

    def _requeue(self, run: RunningRequest) -> None:
        """Take a request out of the batch; it goes on later where it stopped."""
        last_s = run.last_s if run.joined is None else self._gaps.left(run.last_s)
        self._batch.remove(run)
        self._waiting[run.request_id] = (run.request, run.generated, last_s)
        self._records[run.request_id].returns += 1
        self.policy.requeued(run.request_id, run.generated)
