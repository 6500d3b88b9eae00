"""A written-out engine for policy tests: seats, slots, KV memory, loads that take time.

It drives the policy as an engine does and checks at each step what must always hold.
"""

from collections import Counter
from collections.abc import Collection
from dataclasses import dataclass, field

from chameleon_lora.policy.plan import Activation, Fault, Promotion, StepBudget, StepPlan
from chameleon_lora.policy.queues.calibration import LaneCut
from chameleon_lora.policy.queues.quota import Quota
from chameleon_lora.policy.request import Adapter, AdapterId, Request, RequestId
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import EngineLimits, PolicySettings


@dataclass(slots=True)
class Running:
    """A request in the engine's batch."""

    request: Request
    true_output: int
    generated: int = 0


@dataclass(slots=True)
class Done:
    """How a request ended."""

    arrived_s: float
    first_s: float | None = None
    end_s: float | None = None
    failure: str | None = None


@dataclass
class EngineModel:
    """One token per running request and step; a step takes `step_s` and each activation `copy_s`."""

    settings: PolicySettings
    limits: EngineLimits
    step_s: float = 0.02
    copy_s: float = 0.004
    load_s: float = 0.1
    promote_s: float = 0.05
    batch_tokens: int = 512
    broken: frozenset[AdapterId] = frozenset()
    fault: Fault = Fault.SERVER  # what the broken ones fail by
    true_bytes: dict[AdapterId, int] = field(default_factory=dict)  # where not as foretold
    true_ranks: dict[AdapterId, int] = field(default_factory=dict)
    now_s: float = 0.0
    policy: Scheduler = field(init=False)
    running: dict[RequestId, Running] = field(default_factory=dict)
    waiting: dict[RequestId, tuple[Request, int, int]] = field(default_factory=dict)
    loading: list[tuple[float, AdapterId]] = field(default_factory=list)
    host: set[AdapterId] = field(default_factory=set)
    slots: list[AdapterId | None] = field(default_factory=list)  # who is in each
    lent: dict[AdapterId, int] = field(default_factory=dict)  # KV blocks, by who holds them
    promoting: list[tuple[float, Promotion]] = field(default_factory=list)
    begun_s: list[float] = field(default_factory=list)  # when promotions began
    done: dict[RequestId, Done] = field(default_factory=dict)
    plans: list[StepPlan] = field(default_factory=list)
    squashed: int = 0
    preemptions: Counter[RequestId] = field(default_factory=Counter)
    activations: int = 0

    def __post_init__(self) -> None:
        self.policy = Scheduler(self.settings, self.limits)
        self.slots = [None] * (0 if self.limits.is_paged else self.limits.slots)

    def register(self, *adapters: Adapter) -> None:
        """These adapters can be named from now on."""
        for known in adapters:
            self.policy.registered(known)

    def preload(self, *adapters: Adapter) -> None:
        """These adapters are registered and in host memory."""
        self.register(*adapters)
        for known in adapters:
            self.policy.preloaded(known.id, self.now_s)
            assert self.policy.adapter(known.id).is_in_host
            self.host.add(known.id)

    def arrive(self, request: Request, true_output: int) -> None:
        """A client's request comes in."""
        self.done[request.id] = Done(self.now_s)
        self.waiting[request.id] = (request, true_output, 0)
        self.policy.arrived(request, self.now_s)

    def abort(self, request_id: RequestId) -> None:
        """The client goes away."""
        if (run := self.running.pop(request_id, None)) is not None:
            self._left(run.request.adapter_id)
        self.waiting.pop(request_id, None)
        self.done.pop(request_id, None)
        self.policy.finished(request_id, 0, self.now_s)

    def preempt(self, request_id: RequestId) -> None:
        """The engine takes a request out of its batch."""
        self.preemptions[request_id] += 1
        self._take_back(request_id)

    def _take_back(self, request_id: RequestId) -> None:
        run = self.running.pop(request_id)
        self._left(run.request.adapter_id)
        self.waiting[request_id] = (run.request, run.true_output, run.generated)
        self.policy.requeued(request_id, run.generated)

    def end_load(self, adapter_id: AdapterId, *, is_broken: bool) -> None:
        """One load under way ends now."""
        self.loading = [item for item in self.loading if item[1] != adapter_id]
        if is_broken:
            self.policy.load_failed(adapter_id, "its file is truncated", self.now_s, self.fault)
            return
        self.host.add(adapter_id)
        foretold = self.policy.adapter(adapter_id).adapter
        nbytes = self.true_bytes.get(adapter_id, foretold.nbytes)
        self.policy.loaded(
            adapter_id, nbytes, self.true_ranks.get(adapter_id, foretold.rank), self.now_s
        )

    def kv_used(self) -> int:
        """Tokens in KV blocks."""
        block = self.limits.block_tokens
        return sum(
            ((r.request.input_tokens + r.generated) // block + 1) * block
            for r in self.running.values()
        )

    @property
    def in_use(self) -> set[AdapterId]:
        """The adapters of the batch."""
        named = (run.request.adapter_id for run in self.running.values())
        return {adapter_id for adapter_id in named if adapter_id is not None}

    @property
    def busy_blocks(self) -> int:
        """KV blocks from which adapters run; 0 where they run from slots."""
        return sum(self.lent.get(a, 0) for a in self.in_use) if self.limits.is_paged else 0

    @property
    def used_blocks(self) -> int:
        """KV blocks that requests hold; a pool too small for one it runs is used up."""
        most = self.limits.kv_blocks.count - self.busy_blocks
        return min(most, self.kv_used() // self.limits.block_tokens)

    @property
    def free_blocks(self) -> int:
        """KV blocks that neither requests nor adapters hold."""
        return self.limits.kv_blocks.count - self.used_blocks - sum(self.lent.values())

    @property
    def growth_blocks(self) -> int:
        """KV blocks that running requests take in this step."""
        block = self.limits.block_tokens
        return sum(
            (r.request.input_tokens + r.generated + 1) % block == 0 for r in self.running.values()
        )

    def give_back(self, *adapter_ids: AdapterId) -> None:
        """The blocks of these adapters are free."""
        for adapter_id in adapter_ids:
            assert self.lent.pop(adapter_id, 0), "blocks were given back twice"

    def take_blocks(self, count: int) -> tuple[AdapterId, ...]:
        """Requests are about to take so many blocks beyond the free ones; answers who gave them."""
        untold = sum(self.lent.values()) - self.policy.held_blocks
        chosen = self.policy.make_room(count - untold, self.now_s)
        self.give_back(*chosen)
        return chosen

    def end_promotion(
        self, promotion: Promotion, *, is_failed: bool = False, is_final: bool = False
    ) -> None:
        """The copy ends now; or it was called off before, and this is its late ack."""
        self.promoting = [item for item in self.promoting if item[1] is not promotion]
        if is_failed:
            self.policy.promotion_failed(promotion.serial, is_final=is_final)
        else:
            self.policy.promoted(promotion.serial)

    def room(self) -> StepBudget:
        """What the policy is told before a step."""
        return StepBudget(
            seats=self.limits.seats - len(self.running),
            kv_tokens=self.limits.kv_tokens
            - self.kv_used()
            - self.busy_blocks * self.limits.block_tokens,
            batch_tokens=self.batch_tokens - len(self.running),
            is_empty=not self.running,
            free_blocks=self.free_blocks,
            growth_blocks=self.growth_blocks,
        )

    def step(self) -> StepPlan:
        """One engine step: plan, carry out, generate."""
        plan = self.plan()
        self._generate(len(plan.activations))
        self._finish_copies()
        return plan

    def plan(self) -> StepPlan:
        """Ask for a plan and carry it out, up to the admissions."""
        plan = self.policy.step(self.now_s, self.room())
        self.plans.append(plan)
        self._carry_out(plan)
        return plan

    def run_until_idle(self, limit: int = 100_000) -> None:
        """Step until nothing waits, runs or loads."""
        for _ in range(limit):
            if not (self.running or self.waiting or self.loading):
                return
            self.step()
        raise AssertionError(f"{len(self.waiting)} requests still wait after {limit} steps")

    def _carry_out(self, plan: StepPlan) -> None:
        for failure in plan.fail:
            if self.waiting.pop(failure.request_id, None):
                self.done[failure.request_id].failure = failure.reason
        for request_id in plan.squash:
            self._take_back(request_id)
            self.squashed += 1
        in_use = self.in_use
        for dropped in (*plan.drops, *(e for load in plan.loads for e in load.evicts)):
            assert dropped not in in_use, "an adapter in use was evicted"
            self.host.discard(dropped)
            self._clear(dropped)
        for load in plan.loads:
            assert load.adapter_id not in self.host
            known = self.policy.adapter(load.adapter_id)
            assert known.queued or known.is_pinned or known.is_expected, "loaded for nobody"
            self.loading.append((self.now_s + self.load_s, load.adapter_id))
        self._lend(plan)
        for activation in plan.activations:
            assert activation.adapter_id in self.host, "activated from nowhere"
            if self.limits.is_paged:
                self._page_in(activation)
            else:
                self._copy(activation, in_use)
            in_use.add(activation.adapter_id)
        for admission in plan.admit:
            request, true_output, generated = self.waiting.pop(admission.request_id)
            assert admission.adapter_id is None or admission.adapter_id in self.places
            self.running[request.id] = Running(request, true_output, generated)
        self._make_room()

    @property
    def places(self) -> Collection[AdapterId | None]:
        """The adapters that a batch may use, where they lie or from slots."""
        if not self.limits.is_paged:
            return self.slots
        return self.lent if self.limits.block_bytes else self.host

    def _lend(self, plan: StepPlan) -> None:
        """KV blocks change hands between adapters."""
        self.give_back(*plan.demotions)
        for promotion in plan.promotions:
            self.give_back(*promotion.evicts)
            assert promotion.adapter_id in self.host, "promoted from nowhere"
            assert 0 < promotion.blocks <= self.free_blocks, "promoted into blocks in use"
            assert promotion.adapter_id not in self.lent
            self.lent[promotion.adapter_id] = promotion.blocks
            self.promoting.append((self.now_s + self.promote_s, promotion))
            self.begun_s.append(self.now_s)

    def _make_room(self) -> None:
        """Idle adapters give their blocks; where those in use hold some too, preemption does the rest."""
        if self.free_blocks < 0:
            self.take_blocks(-self.free_blocks)
        while self.limits.is_paged and self.lacking_blocks > 0:
            self.take_blocks(self.lacking_blocks)
            if self.lacking_blocks <= 0 or len(self.running) == 1:
                break
            self.preempt(next(reversed(self.running)))

    @property
    def lacking_blocks(self) -> int:
        """By how much requests and adapters together are above the pool."""
        held = sum(self.lent.values())
        return self.kv_used() // self.limits.block_tokens + held - self.limits.kv_blocks.count

    def _left(self, adapter_id: AdapterId | None) -> None:
        """A request runs no more. The last one of an adapter may take it out of its slot."""
        if adapter_id is None or adapter_id in self.in_use:
            return
        is_pinned = self.policy.adapter(adapter_id).is_pinned
        if not (self.settings.cache.keeps_unused or is_pinned):
            self._clear(adapter_id)

    def _page_in(self, activation: Activation) -> None:
        """Requests run with the adapter from its blocks, which it gets if it has none."""
        if not self.limits.block_bytes:
            return
        nbytes = self.policy.adapter(activation.adapter_id).adapter.nbytes
        self.lent.setdefault(activation.adapter_id, -(-nbytes // self.limits.block_bytes))

    def _copy(self, activation: Activation, in_use: set[AdapterId]) -> None:
        """Copy an adapter to its slot; whoever had it is in no slot any more."""
        adapter_id, slot = activation.adapter_id, activation.slot
        assert adapter_id not in self.slots, "an adapter was copied to a second place"
        assert self.slots[slot] not in in_use, "a slot in use was overwritten"
        self.slots[slot] = adapter_id
        self.activations += 1

    def _clear(self, adapter_id: AdapterId | None) -> None:
        self.slots = [None if tenant == adapter_id else tenant for tenant in self.slots]

    def _generate(self, activations: int) -> None:
        self.now_s += self.step_s + activations * self.copy_s
        for request_id, run in list(self.running.items()):
            run.generated += 1
            done = self.done[request_id]
            done.first_s = done.first_s or self.now_s
            if run.generated >= run.true_output:
                del self.running[request_id]
                self._left(run.request.adapter_id)
                done.end_s = self.now_s
                self.policy.finished(request_id, run.generated, self.now_s)

        self._make_room()

    def _finish_copies(self) -> None:
        for end_s, promotion in list(self.promoting):
            if end_s <= self.now_s:
                self.end_promotion(promotion)
        for end_s, adapter_id in list(self.loading):
            if end_s <= self.now_s:
                self.end_load(adapter_id, is_broken=adapter_id in self.broken)


def adapter(number: int, nbytes: int = 1_000_000, rank: int = 8) -> Adapter:
    """A registered adapter for tests."""
    return Adapter(AdapterId(number), f"adapter-{number}", rank, nbytes)


def cut_lanes(policy: Scheduler, cutoffs: tuple[float, ...], quotas: tuple[Quota, ...]) -> None:
    """Afterwards lanes are cut here and have these quotas, as if the last cut had found them."""
    policy._calibration.cut = LaneCut(cutoffs, quotas)
    policy._book.relimit(quotas)
    policy._backlog.recut(cutoffs)


def two_lanes(policy: Scheduler, small: Quota, large: Quota) -> None:
    """Requests of up to about 800 tokens go to lane 0 from now on, larger ones to lane 1."""
    policy._estimator._sizer.size(1600, 16, None)  # the largest request there ever was
    cut_lanes(policy, (0.5,), (small, large))


def request(
    name: str,
    adapter_id: int | None = None,
    tokens: int = 10,
    output: int = 5,
    limit: int | None = None,
) -> Request:
    """A request whose output length is foretold; `limit` is the client's, if it is another."""
    named = None if adapter_id is None else AdapterId(adapter_id)
    return Request(RequestId(name), named, tokens, limit or output, output)
