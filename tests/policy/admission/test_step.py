"""Who is admitted: Algorithm 1, quotas, bypass and its promises, urgency."""

from collections.abc import Sequence

import pytest

from chameleon_lora.policy.admission.rules import AdmissionSettings, Bypass, LaneOrder, Order
from chameleon_lora.policy.plan import Held, StepBudget
from chameleon_lora.policy.queues.quota import Quota
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import EngineLimits, PolicySettings
from tests.policy.engine_model import EngineModel, adapter, request, two_lanes

ROOM = StepBudget(seats=8, kv_tokens=100_000, batch_tokens=100_000)
PAPER = AdmissionSettings(
    order=Order.FIFO, lane_order=LaneOrder.SMALLEST, bypass=Bypass.OFF, squash_limit=0
)


def make(rules: AdmissionSettings = PAPER, slots: int = 2) -> EngineModel:
    """An engine whose five adapters are in host memory; one token of KV cache each."""
    limits = EngineLimits(seats=8, slots=slots, kv_tokens=100_000, kv_bytes_per_token=1000)
    model = EngineModel(PolicySettings(admission=rules), limits)
    model.preload(*(adapter(number, 1000) for number in range(1, 6)))
    return model


def admitted(policy: Scheduler, room: StepBudget = ROOM) -> list[str]:
    """Whom the next step lets in."""
    return [str(admission.request_id) for admission in policy.step(0.0, room).admit]


def held(policy: Scheduler) -> Sequence[Held | None]:
    """Why each lane's head waits."""
    return [state.held for state in policy.view(0.0).lanes]


class TestAlgorithmOne:
    def test_phase_one_goes_from_the_smallest_lane_up(self) -> None:
        """The small request that came second is admitted first."""
        policy = make().policy
        two_lanes(policy, Quota(1000, 4), Quota(4000, 4))
        policy.arrived(request("large", tokens=1600, output=16), 0.0)
        policy.arrived(request("small"), 0.0)
        assert ["small", "large"] == admitted(policy)

    def test_senior_lane_order_takes_the_oldest_head(self) -> None:
        """With lanes in order of seniority the large one that came first is first."""
        policy = make(AdmissionSettings(order=Order.FIFO, lane_order=LaneOrder.SENIOR)).policy
        two_lanes(policy, Quota(1000, 4), Quota(4000, 4))
        policy.arrived(request("large", tokens=1600, output=16), 0.0)
        policy.arrived(request("small"), 0.0)
        assert ["large", "small"] == admitted(policy)

    def test_phase_one_stops_a_lane_at_its_quota(self) -> None:
        """Two requests of 15 tokens fit into 40; the third waits for quota, for no lane is idle."""
        policy = make().policy
        two_lanes(policy, Quota(40, 8), Quota(1616, 8))
        for name in ("large", "larger"):
            policy.arrived(request(name, tokens=1600, output=16), 0.0)
        for name in "abc":
            policy.arrived(request(name), 0.0)
        assert ["a", "b", "large"] == admitted(policy)
        assert [Held.QUOTA, Held.QUOTA] == held(policy)

    def test_phase_two_lends_what_an_empty_lane_does_not_use(self) -> None:
        """With nobody large, the small ones also use the large lane's quota."""
        policy = make().policy
        two_lanes(policy, Quota(40, 8), Quota(1616, 8))
        for name in "abcd":
            policy.arrived(request(name), 0.0)
        assert ["a", "b", "c", "d"] == admitted(policy)

    def test_a_lane_of_no_seats_borrows_one(self) -> None:
        """The seat comes from the donor too."""
        policy = make().policy
        two_lanes(policy, Quota(0, 0), Quota(5000, 1))
        policy.arrived(request("a"), 0.0)
        policy.arrived(request("b"), 0.0)
        assert ["a"] == admitted(policy)
        assert Held.QUOTA is held(policy)[0]

    def test_a_starving_lane_lends_nothing(self) -> None:
        """While something runs, what a lane has left is kept for its own head, which waits for more."""
        policy = make().policy
        two_lanes(policy, Quota(10, 4), Quota(1000, 4))
        policy.arrived(request("runs", tokens=900, output=16), 0.0)
        assert ["runs"] == admitted(policy)
        policy.arrived(request("small"), 0.0)
        policy.arrived(request("large", tokens=900, output=16), 0.0)
        assert [] == admitted(policy)
        assert [Held.QUOTA, Held.QUOTA] == held(policy)

    @pytest.mark.parametrize("end", ["finish", "abort", "requeue"])
    def test_quota_returns_when_a_request_leaves(self, end: str) -> None:
        """However a request leaves, what it borrowed is lent to the next."""
        policy = make().policy
        two_lanes(policy, Quota(15, 8), Quota(0, 0))
        first, second = request("a"), request("b")
        policy.arrived(first, 0.0)
        policy.arrived(second, 0.0)
        assert ["a"] == admitted(policy)
        if end == "requeue":
            policy.requeued(first.id, 1)
            policy.finished(second.id, 0, 1.0)
        else:
            policy.finished(first.id, 5 if end == "finish" else 0, 1.0)
        assert ["a" if end == "requeue" else "b"] == admitted(policy)


class TestOversized:
    def test_takes_its_lanes_quota_and_what_is_spare(self) -> None:
        """1,616 tokens go on a quota of 1,000 and 300 spare ones, when nothing of the lane runs."""
        policy = make().policy
        two_lanes(policy, Quota(300, 4), Quota(1000, 4))
        policy.arrived(request("large", tokens=1600, output=16), 0.0)
        assert ["large"] == admitted(policy)
        assert [300, 1000] == [state.used_tokens for state in policy.view(0.0).lanes]

    def test_waits_while_its_lane_has_something_in_flight(self) -> None:
        """It goes only when what its lane lent has come back."""
        policy = make().policy
        two_lanes(policy, Quota(300, 4), Quota(1000, 4))
        policy.arrived(first := request("fits", tokens=900, output=16), 0.0)
        policy.arrived(request("large", tokens=1600, output=16), 0.0)
        assert ["fits"] == admitted(policy)
        assert Held.QUOTA is held(policy)[1]
        policy.finished(first.id, 16, 1.0)
        assert ["large"] == admitted(policy)

    def test_every_lane_oversized_and_nothing_running_is_no_deadlock(self) -> None:
        """Where all heads are above their quotas nobody donates; the first takes it all the same."""
        policy = make().policy
        two_lanes(policy, Quota(10, 4), Quota(1000, 4))
        policy.arrived(request("small"), 0.0)
        policy.arrived(request("large", tokens=1600, output=16), 0.0)
        empty = StepBudget(8, 100_000, 100_000, is_empty=True)
        assert ["small"] == admitted(policy, empty)
        assert [] == admitted(policy)  # something runs that will give quota back


class TestEngineRoom:
    @pytest.mark.parametrize(
        ("room", "why"),
        [
            (StepBudget(0, 1000, 1000), Held.SEATS),
            (StepBudget(1, 1000, 0), Held.BATCH),
            (StepBudget(1, 15, 1000), Held.KV_MEMORY),
        ],
    )
    def test_says_what_the_engine_lacks(self, room: StepBudget, why: Held) -> None:
        """A head that the engine has no room for is held for that reason."""
        policy = make().policy
        policy.arrived(request("a"), 0.0)
        assert [] == admitted(policy, room)
        assert [why] == held(policy)

    def test_an_empty_engine_tries_what_its_memory_may_not_hold(self) -> None:
        """With nothing running, waiting for memory would be waiting for ever."""
        policy = make().policy
        policy.arrived(request("a", tokens=1000), 0.0)
        assert ["a"] == admitted(policy, StepBudget(1, 100, 1000, is_empty=True))

    def test_whole_blocks_are_counted(self) -> None:
        """A prompt of 16 tokens and the next token take two blocks of 16."""
        policy = make().policy
        policy.arrived(request("a", tokens=16), 0.0)
        assert [] == admitted(policy, StepBudget(1, 31, 1000))
        assert ["a"] == admitted(policy, StepBudget(1, 32, 1000))

    def test_requests_of_the_base_model_need_no_slot(self) -> None:
        """With the only slot busy, a base-model request runs."""
        policy = make(slots=1).policy
        policy.arrived(request("a", 1), 0.0)
        policy.arrived(request("b"), 0.0)
        assert ["a", "b"] == admitted(policy)


def with_held_head(bypass: Bypass, left: int = 50, squash_limit: int = 0) -> Scheduler:
    """One slot, in which adapter 1 runs for `left` more steps; the head wants adapter 2."""
    rules = AdmissionSettings(bypass=bypass, order=Order.FIFO, squash_limit=squash_limit)
    policy = make(rules, slots=1).policy
    policy.arrived(request("runs", 1, output=left + 1), 0.0)
    assert ["runs"] == admitted(policy)
    policy.arrived(request("head", 2), 0.0)
    assert [] == admitted(policy)
    assert [Held.SLOTS] == held(policy)
    return policy


SHORT, LONG = 10, 200


class TestBypass:
    @pytest.mark.parametrize(
        ("bypass", "passing"),
        [
            (Bypass.OFF, []),
            (Bypass.PAPER, ["short", "short base"]),
            (Bypass.BACKFILL, ["short", "short base", "long base"]),
            (Bypass.ANY, ["short", "long", "short base", "long base"]),
        ],
    )
    def test_who_may_pass_a_head_that_waits_for_a_slot(
        self, bypass: Bypass, passing: list[str]
    ) -> None:
        """OFF: nobody; PAPER: who ends in time; BACKFILL: those and who needs no slot; ANY: all."""
        policy = with_held_head(bypass)
        policy.arrived(request("short", 1, output=SHORT), 0.0)
        policy.arrived(request("long", 1, output=LONG), 0.0)
        policy.arrived(request("short base", output=SHORT), 0.0)
        policy.arrived(request("long base", output=LONG), 0.0)
        assert passing == admitted(policy)

    def test_nobody_passes_a_head_that_waits_for_memory(self) -> None:
        """Bypass is for slots: a head without KV memory holds its lane."""
        policy = make(AdmissionSettings(order=Order.FIFO)).policy
        policy.arrived(request("head", tokens=1000), 0.0)
        policy.arrived(request("small"), 0.0)
        assert [] == admitted(policy, StepBudget(8, 100, 1000))

    def test_passing_ends_when_the_engine_is_full(self) -> None:
        """The first that the engine has no room for ends it."""
        policy = with_held_head(Bypass.BACKFILL)
        policy.arrived(request("a", output=SHORT), 0.0)
        policy.arrived(request("b", output=SHORT), 0.0)
        assert ["a"] == admitted(policy, StepBudget(1, 1000, 1000))

    def test_those_behind_a_passing_one_may_pass_too(self) -> None:
        """The next of the same adapter is tried after the first got in."""
        policy = with_held_head(Bypass.BACKFILL)
        for name in "abc":
            policy.arrived(request(name, 1, output=SHORT), 0.0)
        assert ["a", "b", "c"] == admitted(policy)

    def test_who_is_refused_stays_as_it_was(self) -> None:
        """It kept its promise until it was put back, and is now too long to promise that again."""
        policy = with_held_head(Bypass.BACKFILL)
        policy.arrived(request("short", 1, output=SHORT), 0.0)
        assert ["short"] == admitted(policy)
        state = policy._backlog.states[request("short").id]
        head = policy._backlog.states[request("head").id]
        policy.requeued(state.request.id, 0)
        policy.passed(45)
        assert [] == admitted(policy)
        assert (head.sequence, None) == (state.promised_to, state.charge)

    def test_the_slot_that_comes_free_first_is_reserved(self) -> None:
        """Of two busy slots, only the one that ends sooner is closed to long requests."""
        policy = make(AdmissionSettings(order=Order.FIFO, squash_limit=0), slots=2).policy
        policy.arrived(request("ends soon", 1, output=20), 0.0)
        policy.arrived(request("ends late", 2, output=90), 0.0)
        admitted(policy)
        policy.arrived(request("head", 3), 0.0)
        policy.arrived(request("in the reserved", 1, output=LONG), 0.0)
        policy.arrived(request("in the other", 2, output=LONG), 0.0)
        assert ["in the other"] == admitted(policy)

    def test_an_older_request_may_use_a_younger_ones_reserved_slot(self) -> None:
        """A promise binds only those that came after the head it was given to."""
        rules = AdmissionSettings(order=Order.SJF, squash_limit=0, aging_tokens_per_s=0.0)
        policy = make(rules, slots=1).policy
        policy.arrived(request("runs", 1, output=20), 0.0)
        admitted(policy)
        policy.arrived(request("older", 1, output=LONG), 0.0)
        policy.arrived(request("head", 2, output=2), 0.0)
        assert ["older"] == admitted(policy)


class TestUrgency:
    RULES = AdmissionSettings(
        order=Order.SJF, aging_tokens_per_s=0.0, overtake_limit=2, bypass=Bypass.ANY
    )

    def overtaken(self, times: int) -> Scheduler:
        """A long request of adapter 2 that was passed so often by requests of adapter 1."""
        policy = make(self.RULES, slots=1).policy
        policy.arrived(request("runs", 1, output=900), 0.0)
        admitted(policy)
        policy.arrived(request("old", 2, tokens=100, output=500), 0.0)
        for number in range(times):
            policy.arrived(request(f"young {number}", 1), 0.0)
            assert [f"young {number}"] == admitted(policy)
        return policy

    def test_an_overtaken_request_goes_first(self) -> None:
        """After two younger ones the old one is next, though shorter ones stand before it."""
        policy = self.overtaken(2)
        policy.finished(request("runs").id, 1, 0.0)
        for number in range(2):
            policy.finished(request(f"young {number}").id, 1, 0.0)
        policy.arrived(request("young 9"), 0.0)
        assert ["old", "young 9"] == admitted(policy)

    def test_while_it_waits_for_a_slot_others_leave_it_a_seat(self) -> None:
        """Up to twice the limit those that need no slot pass, but the last seat stays free."""
        policy = self.overtaken(2)
        policy.arrived(request("a"), 0.0)
        policy.arrived(request("b"), 0.0)
        assert ["a"] == admitted(policy, StepBudget(2, 1000, 1000))
        assert [Held.URGENT] == held(policy)

    def test_at_twice_the_limit_nobody_passes(self) -> None:
        """Then everybody waits until it has run."""
        policy = self.overtaken(4)
        policy.arrived(request("a"), 0.0)
        assert [] == admitted(policy)
        assert [Held.URGENT] == held(policy)

    def test_for_want_of_anything_else_nobody_passes(self) -> None:
        """One that waits for KV memory gets what comes free: the others wait at once."""
        policy = self.overtaken(2)
        for name in ("runs", "young 0", "young 1"):
            policy.finished(request(name).id, 1, 0.0)
        policy.arrived(request("a", tokens=1), 0.0)
        assert [] == admitted(policy, StepBudget(2, 50, 1000))
        assert [Held.URGENT] == held(policy)
