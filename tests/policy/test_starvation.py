"""Nobody starves (ADR 0012): hand-made adversaries for each resource, and random ones.

The bound: among the requests held back (ready, or lacking room in host memory for their adapter) the
one that arrived first is overtaken at most 2 * overtake_limit times. So a request before which n
unfinished ones arrived, of which p come back after they ran, sees at most
(n + 1) * 2 * overtake_limit + n + p admissions of others while it is held back.
"""

from collections.abc import Callable
from dataclasses import dataclass, field, replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.policy.admission.rules import AdmissionSettings, Bypass, LaneOrder, Order
from chameleon_lora.policy.memory.residency import CacheSettings
from chameleon_lora.policy.queues.calibration import LaneSettings
from chameleon_lora.policy.queues.clusters import ClusterSettings
from chameleon_lora.policy.queues.lanes import Stage
from chameleon_lora.policy.queues.quota import Quota
from chameleon_lora.policy.request import AdapterId, Request, RequestId
from chameleon_lora.policy.settings import EngineLimits, PolicySettings
from tests.policy.engine_model import EngineModel, adapter, cut_lanes
from tests.policy.invariants import check

WITHOUT_LIMIT = None
LIMIT = 3
VICTIM = RequestId("victim")
UNCUT = LaneSettings(first_after=1 << 30, period_s=1e9, has_quotas=False)
BASE = AdapterId(0)  # stands for the base model in the tables below


@dataclass
class Siege:
    """A victim waits while younger requests keep coming; counts how many are let in before it."""

    engine: EngineModel
    waiting: int = 4
    admitted: int = 0
    _count: int = 0

    def send(self, named: int, tokens: int, output: int, hint: int | None) -> None:
        """One younger request."""
        self._count += 1
        adapter_id = None if named == BASE else AdapterId(named)
        request = Request(RequestId(f"r{self._count}"), adapter_id, tokens, 1000, hint)
        self.engine.arrive(request, output)

    def arrive(self, named: int, tokens: int, output: int = 5) -> None:
        """The victim comes; whoever runs or waits now is older."""
        adapter_id = None if named == BASE else AdapterId(named)
        self.engine.arrive(Request(VICTIM, adapter_id, tokens, 1000, output), output)

    def lasts(self, send: Callable[[int], None], steps: int = 400) -> bool:
        """Go on for this many steps or until the victim runs; True if it still waits then."""
        for _ in range(steps):
            while len(self.engine.waiting) <= self.waiting:
                send(self._count)
            plan = self.engine.step()
            check(self.engine)
            if VICTIM in (admission.request_id for admission in plan.admit):
                return False
            self.admitted += len(plan.admit)
        return True


def engine(
    admission: AdmissionSettings,
    lanes: LaneSettings = UNCUT,
    host_bytes: int | None = None,
    seats: int = 4,
    kv_tokens: int = 10_000,
) -> EngineModel:
    """An engine with two slots, four seats, five adapters of 1,000 bytes."""
    limits = EngineLimits(seats=seats, slots=2, kv_tokens=kv_tokens, kv_bytes_per_token=1000)
    settings = PolicySettings(
        admission=admission, lanes=lanes, cache=CacheSettings(host_bytes=host_bytes)
    )
    model = EngineModel(settings, limits, load_s=0.0)
    model.register(*(adapter(number, 1000) for number in range(1, 6)))
    return model


FIFO = AdmissionSettings(order=Order.FIFO, overtake_limit=LIMIT, squash_limit=0)
BOUND = 2 * LIMIT
EACH_LIMIT = pytest.mark.parametrize("limit", [LIMIT, WITHOUT_LIMIT])


@EACH_LIMIT
@pytest.mark.parametrize("bypass", [Bypass.BACKFILL, Bypass.PAPER, Bypass.ANY])
def test_slots_held_by_requests_that_outlive_their_prediction(limit: int, bypass: Bypass) -> None:
    """Hot adapters with foretold outputs of 1 that run for 20 do not keep a third from a slot."""
    siege = Siege(engine(replace(FIFO, bypass=bypass, overtake_limit=limit)))

    def send(count: int) -> None:
        siege.send(1 + count % 2, 10, 20 + count % 3, hint=1)

    siege.lasts(send, 20)  # never mind the victim yet: both slots are taken
    siege.admitted = 0
    older = len(siege.engine.policy._backlog.states)
    siege.arrive(3, 10)
    assert (limit == WITHOUT_LIMIT) is siege.lasts(send)
    if limit == LIMIT:
        assert siege.admitted <= (older + 1) * BOUND + older


@EACH_LIMIT
@pytest.mark.parametrize("bypass", [Bypass.BACKFILL, Bypass.ANY])
def test_slots_held_though_seats_are_plenty(limit: int, bypass: Bypass) -> None:
    """Where a seat is always left, only the stop at twice the limit ends the passing."""
    siege = Siege(engine(replace(FIFO, bypass=bypass, overtake_limit=limit), seats=64))

    def send(count: int) -> None:
        siege.send(1 + count % 2, 10, 4 + count % 3, hint=1)

    siege.lasts(send, 20)
    siege.admitted = 0
    older = len(siege.engine.policy._backlog.states)
    siege.arrive(3, 10)
    assert (limit == WITHOUT_LIMIT) is siege.lasts(send)
    if limit == LIMIT:
        assert siege.admitted <= (older + 1) * BOUND + older


@EACH_LIMIT
def test_seats_taken_by_shorter_requests(limit: int) -> None:
    """With SJF and no aging a long request gets one of the seats that short ones keep asking for."""
    rules = replace(FIFO, order=Order.SJF, aging_tokens_per_s=0.0, overtake_limit=limit)
    siege = Siege(engine(rules, seats=1))
    siege.arrive(BASE, 10, output=500)
    assert (limit == WITHOUT_LIMIT) is siege.lasts(lambda _: siege.send(BASE, 5, 2, hint=2))
    if limit == LIMIT:
        assert siege.admitted <= BOUND


@EACH_LIMIT
def test_quota_of_a_lane_that_has_no_seat(limit: int) -> None:
    """A lane whose quota has no seat gets the one of the lane before it, however busy that is."""
    rules = replace(FIFO, lane_order=LaneOrder.SMALLEST, overtake_limit=limit)
    siege = Siege(engine(rules, lanes=replace(UNCUT, has_quotas=True), seats=1))
    siege.arrive(BASE, 1000, output=100)
    cut_lanes(siege.engine.policy, (0.5,), (Quota(5000, 1), Quota(5000, 0)))
    assert (limit == WITHOUT_LIMIT) is siege.lasts(lambda _: siege.send(BASE, 5, 2, hint=2))
    if limit == LIMIT:
        assert siege.admitted <= BOUND


@EACH_LIMIT
def test_memory_that_small_requests_keep_below_what_a_large_one_needs(limit: int) -> None:
    """A prompt of most of the KV cache runs, though small ones of another lane always find room."""
    rules = replace(FIFO, lane_order=LaneOrder.SMALLEST, overtake_limit=limit)
    siege = Siege(engine(rules, kv_tokens=1024))
    siege.arrive(BASE, 900, output=100)
    cut_lanes(siege.engine.policy, (0.5,), (Quota(1 << 40, 1 << 20),) * 2)

    def send(count: int) -> None:
        siege.send(BASE, 60, 10 + count % 7, hint=10)

    assert (limit == WITHOUT_LIMIT) is siege.lasts(send)
    if limit == LIMIT:
        assert siege.admitted <= BOUND


@EACH_LIMIT
def test_host_memory_filled_by_adapters_always_in_use(limit: int) -> None:
    """An adapter for which host memory has no room is loaded, though those in it stay in demand."""
    siege = Siege(engine(replace(FIFO, overtake_limit=limit), host_bytes=2000))

    def send(count: int) -> None:
        siege.send(1 + count % 2, 10, 20 + count % 3, hint=20)

    siege.lasts(send, 20)
    siege.admitted = 0
    older = len(siege.engine.policy._backlog.states)
    siege.arrive(3, 10)
    assert (limit == WITHOUT_LIMIT) is siege.lasts(send)
    if limit == LIMIT:
        # nothing else is loaded meanwhile, but while it is being loaded it is not held back
        assert siege.admitted <= (older + 1) * BOUND + older + siege.engine.limits.seats


def test_boosted_requests_pass_no_more_often_than_others() -> None:
    """BOOST's head start is no way round the limit: the oldest is let in after 2 * limit others."""
    siege = Siege(engine(replace(FIFO, order=Order.BOOST), seats=1))
    siege.engine.policy._estimator._load.admitted(1e6)  # waits were long, so head starts are
    for tenth in range(3):
        siege.engine.policy._estimator._load.ended(1000, tenth / 10)
    siege.arrive(BASE, 5000, output=100)
    assert not siege.lasts(lambda _: siege.send(BASE, 1, 1, hint=1))
    assert 0 < siege.admitted <= BOUND


@dataclass
class OvertakeWatch:
    """What the bound is made of, counted at the engine for one request."""

    older: frozenset[RequestId]
    seen: int = 0  # admissions of others in steps before which it was held back
    returned: int = 0  # times one of the older came back


@dataclass
class Watchers:
    """One watch a request, until it runs."""

    engine: EngineModel
    watches: dict[RequestId, OvertakeWatch] = field(default_factory=dict)

    def arrive(self, request: Request, output: int) -> None:
        """A request comes in."""
        self.watches[request.id] = OvertakeWatch(frozenset(self.engine.policy._backlog.states))
        self.engine.arrive(request, output)

    def step(self) -> None:
        """One step, counted for all; whoever is let in has kept its bound."""
        backlog = self.engine.policy._backlog
        limit = self.engine.settings.admission.overtake_limit
        assert limit is not None
        held_back = {i for i, t in backlog.states.items() if t.stage is Stage.READY}
        plan = self.engine.step()
        for request_id in held_back & self.watches.keys():
            watch = self.watches[request_id]
            admitted = [a.request_id for a in plan.admit]
            if request_id in admitted:
                admitted = admitted[: admitted.index(request_id)]
            watch.seen += len(admitted)
            n, p = len(watch.older), watch.returned
            assert watch.seen <= (n + 1) * 2 * limit + n + p
        for admission in plan.admit:
            self.watches.pop(admission.request_id, None)
        for request_id in plan.squash:
            self.count_return(request_id)

    def count_return(self, request_id: RequestId) -> None:
        """A running request went back to its lane."""
        for watch in self.watches.values():
            watch.returned += request_id in watch.older


REQUESTS = st.tuples(
    st.sampled_from((0, 1, 1, 1, 2, 2, 2, 3, 4, 5)),  # adapter
    st.sampled_from((1, 5, 5, 40, 400)),  # input tokens
    st.integers(1, 12),  # true output
    st.none() | st.integers(1, 12),  # foretold output
)
RULES = st.builds(
    AdmissionSettings,
    bypass=st.sampled_from(Bypass),
    order=st.sampled_from(Order),
    lane_order=st.sampled_from(LaneOrder),
    squash_limit=st.integers(0, 1),
    overtake_limit=st.integers(1, 3),
    aging_tokens_per_s=st.sampled_from((0.0, 10.0)),
)
LANES = LaneSettings(cluster=ClusterSettings(elbow_share=0.01), first_after=6, period_s=1.0)


@given(
    rules=RULES,
    requests=st.lists(REQUESTS, min_size=5, max_size=80),
    host_bytes=st.sampled_from((None, 2000, 4000)),
    rate=st.integers(1, 3),
    preempted=st.sets(st.integers(0, 60), max_size=4),
)
def test_random_requests_keep_the_bound(
    rules: AdmissionSettings,
    requests: list[tuple[int, int, int, int | None]],
    host_bytes: int | None,
    rate: int,
    preempted: set[int],
) -> None:
    """Under overload, with any rules, no request sees more admissions of others than the bound."""
    model = engine(rules, LANES, host_bytes, seats=3, kv_tokens=600)
    watchers = Watchers(model)
    for number, (named, tokens, output, hint) in enumerate(requests):
        adapter_id = None if named == BASE else AdapterId(named)
        watchers.arrive(
            Request(RequestId(f"r{number}"), adapter_id, tokens, 20, hint), min(output, 20)
        )
        if number in preempted and model.running:
            victim = next(iter(model.running))
            model.preempt(victim)
            watchers.count_return(victim)
        if number % rate == 0:
            watchers.step()
    while watchers.watches:
        watchers.step()
    check(model)
