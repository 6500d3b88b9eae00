"""The whole policy under any order of facts, driven by the engine model."""

from dataclasses import replace
from typing import TypeVar

from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from chameleon_lora.policy.admission.rules import Bypass, LaneOrder, Order, Reserve
from chameleon_lora.policy.memory.eviction import KeepRule
from chameleon_lora.policy.memory.forecast import ForecastSettings
from chameleon_lora.policy.queues.clusters import ClusterSettings
from chameleon_lora.policy.request import AdapterId, Request, RequestId, Share
from chameleon_lora.policy.settings import EngineLimits, PolicySettings, Preset, preset
from tests.policy.engine_model import EngineModel, adapter
from tests.policy.invariants import check, check_idle

T = TypeVar("T")

KV_TOKENS = 2048
MAX_OUTPUT = 20
NEVER_S = 1e9
EAGER = ForecastSettings(least_gaps=2, least_variation=0.0)
LIMITS = st.builds(
    EngineLimits,
    seats=st.integers(1, 6),
    slots=st.integers(1, 3),
    kv_tokens=st.just(KV_TOKENS),
    kv_bytes_per_token=st.just(1000),
)
RANKS = st.sampled_from((8, 16, 32, 64))
PICKS = st.integers(0, 1 << 16)
SHARES = st.none() | st.sampled_from([Share("a"), Share("b", 0.5), Share("b", 4.0)])


@st.composite
def policies(draw: st.DrawFn) -> PolicySettings:
    """A preset with some of its rules exchanged, small lanes and a small budget."""
    settings = preset(draw(st.sampled_from(Preset)))
    admission, cache = settings.admission, settings.cache
    if draw(st.booleans()):
        admission = replace(
            admission,
            bypass=draw(st.sampled_from(Bypass)),
            order=draw(st.sampled_from(Order)),
            lane_order=draw(st.sampled_from(LaneOrder)),
            squash_limit=draw(st.integers(0, 2)),
            overtake_limit=draw(st.integers(1, 6)),
            reserve=draw(st.sampled_from(Reserve)),
            every_steps=draw(st.sampled_from((1, 1, 2, 5))),
        )
        cache = replace(cache, keep=draw(st.sampled_from(KeepRule)))
    cluster = ClusterSettings(max_lanes=min(3, settings.lanes.cluster.max_lanes), elbow_share=0.01)
    return replace(
        settings,
        admission=admission,
        lanes=replace(settings.lanes, cluster=cluster, first_after=4, period_s=5.0),
        cache=replace(cache, host_bytes=draw(st.sampled_from((None, 2500, 4000, 9000)))),
        prefetch=replace(settings.prefetch, predicted=draw(st.booleans()), forecast=EAGER),
    )


class SchedulerMachine(RuleBasedStateMachine):
    """Facts come in any order the engine allows; every invariant holds after each of them."""

    @initialize(settings=policies(), limits=LIMITS)
    def start(self, settings: PolicySettings, limits: EngineLimits) -> None:
        self.engine = EngineModel(settings, limits, load_s=NEVER_S, batch_tokens=4096)
        self.registered: list[AdapterId] = []
        self.count = 0
        for nbytes in (1000, 2000):
            self.register(nbytes, nbytes // 100)

    @rule(nbytes=st.sampled_from((500, 1000, 2000, 3000)), rank=RANKS)
    def register(self, nbytes: int, rank: int) -> None:
        self.count += 1
        self.registered.append(AdapterId(self.count))
        self.engine.register(adapter(self.count, nbytes, rank))

    @rule(
        pick=PICKS,
        is_base=st.sampled_from((False, False, True)),
        tokens=st.integers(1, 60) | st.integers(1, KV_TOKENS + 100),
        output=st.integers(1, MAX_OUTPUT),
        slack=st.integers(0, 3000),
        hint=st.none() | st.integers(1, MAX_OUTPUT),
        again_s=st.sampled_from((0.1, 1.0, 10.0, float("inf"))),
        share=SHARES,
    )
    def arrive(
        self,
        pick: int,
        is_base: bool,
        tokens: int,
        output: int,
        slack: int,
        hint: int | None,
        again_s: float,
        share: Share | None = None,
    ) -> None:
        """A request; whoever knows the future says when the next one of its adapter comes."""
        self.count += 1
        named = None if is_base or not self.registered else self.pick(self.registered, pick)
        limit = output + slack
        again_s += self.engine.now_s
        request = Request(
            RequestId(f"r{self.count}"), named, tokens, limit, hint, share=share, next_use_s=again_s
        )
        self.engine.arrive(request, output)

    @rule(steps=st.integers(1, 4))
    def step(self, steps: int) -> None:
        for _ in range(steps):
            self.engine.step()
            check(self.engine)

    @rule(dt_s=st.sampled_from((0.001, 0.5, 6.0, 400.0)))
    def advance(self, dt_s: float) -> None:
        self.engine.now_s += dt_s

    @precondition(lambda self: self.registered)
    @rule(pick=PICKS, period_s=st.sampled_from((0.5, 6.0)), is_aborted=st.booleans())
    def come_regularly(self, pick: int, period_s: float, is_aborted: bool) -> None:
        """One adapter is asked for at one distance, until it is foretold to be again."""
        for _ in range(3):
            self.arrive(pick, is_base=False, tokens=5, output=5, slack=0, hint=5, again_s=period_s)
            if is_aborted:
                self.engine.abort(RequestId(f"r{self.count}"))
            self.engine.now_s += 0.95 * period_s

    @precondition(lambda self: self.engine.running or self.engine.waiting)
    @rule(pick=PICKS)
    def abort(self, pick: int) -> None:
        self.engine.abort(self.pick([*self.engine.running, *self.engine.waiting], pick))

    @rule()
    def abort_unknown(self) -> None:
        self.engine.abort(RequestId("never seen"))

    @precondition(lambda self: self.engine.running)
    @rule(pick=PICKS)
    def preempt(self, pick: int) -> None:
        self.engine.preempt(self.pick(list(self.engine.running), pick))

    @rule(taken=st.integers(0, 3))
    def plan_in_vain(self, taken: int) -> None:
        """The engine admits only the first of those planned, the rest go back at once, last first."""
        plan = self.engine.plan()
        for admission in reversed(plan.admit[taken:]):
            self.engine.preempt(admission.request_id)

    @precondition(lambda self: self.engine.loading)
    @rule(
        pick=PICKS,
        is_broken=st.sampled_from((False, False, False, True)),
        growth=st.sampled_from((0, 0, 0, 700)),
        rank=st.none() | RANKS,
    )
    def end_load(self, pick: int, is_broken: bool, growth: int, rank: int | None) -> None:
        adapter_id = self.pick([loading for _, loading in self.engine.loading], pick)
        if growth and not is_broken:
            foretold = self.engine.policy.adapter(adapter_id).adapter.nbytes
            self.engine.true_bytes[adapter_id] = foretold + growth
        if rank:
            self.engine.true_ranks[adapter_id] = rank
        self.engine.end_load(adapter_id, is_broken=is_broken)

    @precondition(lambda self: self.registered)
    @rule(pick=PICKS)
    def unregister(self, pick: int) -> None:
        gone = self.pick(self.registered, pick)
        self.registered.remove(gone)
        self.engine.policy.unregistered(gone)

    @invariant()
    def holds(self) -> None:
        if hasattr(self, "engine"):
            check(self.engine)

    def teardown(self) -> None:  # type: ignore[explicit-override]  # typing.override: Python 3.12
        """When nothing more arrives and loads end, all requests end within a bound of steps."""
        if not hasattr(self, "engine"):
            return
        engine = self.engine
        engine.load_s = 0.0
        engine.loading = [(0.0, adapter_id) for _, adapter_id in engine.loading]
        every = engine.settings.admission.every_steps
        requests = len(engine.running) + len(engine.waiting)
        engine.run_until_idle((requests + 1) * (2 * MAX_OUTPUT + 2 * every + 8))
        engine.step()  # tells of what failed last
        check_idle(engine)

    @staticmethod
    def pick(items: list[T], pick: int) -> T:
        return items[pick % len(items)]


TestSchedulerMachine = SchedulerMachine.TestCase
