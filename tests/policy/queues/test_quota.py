"""Lane quotas and the book of what is borrowed."""

from collections.abc import Sequence

import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule

from chameleon_lora.policy.queues.quota import LaneLoad, Quota, QuotaBook, QuotaCharge, lane_quotas

LOADS = st.lists(
    st.builds(
        LaneLoad,
        largest_tokens=st.integers(0, 20_000),
        mean_duration_s=st.just(0.0) | st.floats(1e-6, 100),
        arrivals_per_s=st.just(0.0) | st.floats(1e-6, 100),
    ),
    min_size=1,
    max_size=5,
)
TOTALS = st.builds(Quota, tokens=st.integers(0, 200_000), seats=st.integers(0, 300))
SLOS = st.floats(0.05, 60)
LIMITS = st.lists(
    st.builds(Quota, tokens=st.integers(0, 100), seats=st.integers(0, 4)), min_size=1, max_size=4
)


def naive_shares(total: int, needs: Sequence[float], least: Sequence[int]) -> list[float]:
    """max(least, scale * need) for the scale at which they sum to total, by bisection."""
    if not any(needs):
        needs = [1.0] * len(needs)
    low, high = 0.0, (total + 1.0) / max(needs)
    for _ in range(200):
        scale = (low + high) / 2
        if sum(max(s, scale * n) for s, n in zip(least, needs, strict=True)) > total:
            high = scale
        else:
            low = scale
    return [max(s, low * n) for s, n in zip(least, needs, strict=True)]


def token_needs(loads: Sequence[LaneLoad], slo_s: float) -> list[float]:
    """Tok_min of each lane, as the paper writes it."""
    return [
        load.largest_tokens * load.mean_duration_s * (1 / slo_s + load.arrivals_per_s)
        for load in loads
    ]


class TestLaneQuotas:
    def test_needs_that_fit_share_the_rest_in_proportion(self) -> None:
        """Needs of 1,000 and 3,000 tokens of 8,000 make 2,000 and 6,000."""
        loads = [LaneLoad(500, 1.0, 1.0), LaneLoad(1500, 1.0, 1.0)]
        quotas = lane_quotas(Quota(8000, 10), loads, slo_s=1.0)
        assert quotas == (Quota(2000, 5), Quota(6000, 5))

    def test_needs_that_exceed_the_total_are_scaled_down(self) -> None:
        """Needs of 40,000 and 120,000 tokens of 8,000 make 2,000 and 6,000."""
        loads = [LaneLoad(500, 40.0, 1.0), LaneLoad(1500, 40.0, 1.0)]
        quotas = lane_quotas(Quota(8000, 10), loads, slo_s=1.0)
        assert [quota.tokens for quota in quotas] == [2000, 6000]

    def test_lane_keeps_room_for_one_request_when_scaled_down(self) -> None:
        """A quiet lane of large requests is lifted to one of them; the busy lane pays."""
        loads = [LaneLoad(100, 10.0, 99.0), LaneLoad(4000, 0.1, 0.0)]
        quotas = lane_quotas(Quota(5000, 10), loads, slo_s=1.0)
        assert [quota.tokens for quota in quotas] == [1000, 4000]

    def test_total_below_one_request_each_is_shared_by_request_size(self) -> None:
        """Largest requests of 1,000 and 3,000 tokens share 400 as 100 and 300."""
        loads = [LaneLoad(1000, 1.0, 50.0), LaneLoad(3000, 1.0, 0.0)]
        quotas = lane_quotas(Quota(400, 10), loads, slo_s=1.0)
        assert [quota.tokens for quota in quotas] == [100, 300]

    def test_needs_of_zero_share_equally(self) -> None:
        """Lanes without load have like quotas, the odd token with the lowest lane."""
        loads = [LaneLoad(0, 0.0, 0.0)] * 3
        quotas = lane_quotas(Quota(10, 4), loads, slo_s=1.0)
        assert quotas == (Quota(4, 2), Quota(3, 1), Quota(3, 1))

    def test_last_token_goes_to_the_largest_remainder(self) -> None:
        """Needs of 1 to 2 share 4 tokens as 1 and 3, from 1.33 and 2.67."""
        loads = [LaneLoad(1, 1.0, 1.0), LaneLoad(2, 1.0, 1.0)]
        quotas = lane_quotas(Quota(4, 2), loads, slo_s=1.0)
        assert [quota.tokens for quota in quotas] == [1, 3]

    def test_fewer_seats_than_lanes_go_to_the_lowest_lanes(self) -> None:
        """Two seats for three lanes sit in the lanes of the smallest requests."""
        quotas = lane_quotas(Quota(900, 2), [LaneLoad(1, 1.0, 1.0)] * 3, slo_s=1.0)
        assert [quota.seats for quota in quotas] == [1, 1, 0]

    def test_no_lane_has_no_quota(self) -> None:
        """Quotas are per lane: none for none."""
        assert lane_quotas(Quota(10, 10), [], slo_s=1.0) == ()

    @pytest.mark.parametrize("slo_s", [0.0, -1.0])
    def test_objective_of_no_time_is_impossible(self, slo_s: float) -> None:
        """An SLO at or below 0 s stops the run."""
        with pytest.raises(AssertionError, match="cannot be met"):
            lane_quotas(Quota(1, 1), [LaneLoad(1, 1.0, 1.0)], slo_s)

    def test_negative_load_is_impossible(self) -> None:
        """A load below 0 stops the run."""
        with pytest.raises(AssertionError, match="mean_duration_s=-1"):
            lane_quotas(Quota(1, 1), [LaneLoad(1, -1.0, 1.0)], slo_s=1.0)

    @given(total=TOTALS, loads=LOADS, slo_s=SLOS)
    def test_quotas_sum_to_exactly_the_total(
        self, total: Quota, loads: list[LaneLoad], slo_s: float
    ) -> None:
        """Neither a token nor a seat is lost or made up, and none is negative."""
        quotas = lane_quotas(total, loads, slo_s)
        assert total.tokens == sum(quota.tokens for quota in quotas)
        assert total.seats == sum(quota.seats for quota in quotas)
        assert all(min(quota.tokens, quota.seats) >= 0 for quota in quotas)

    @given(total=TOTALS, loads=LOADS, slo_s=SLOS)
    def test_each_lane_can_run_one_request(
        self, total: Quota, loads: list[LaneLoad], slo_s: float
    ) -> None:
        """While the total allows, each lane has its largest request's tokens, and one seat."""
        quotas = lane_quotas(total, loads, slo_s)
        if sum(load.largest_tokens for load in loads) <= total.tokens:
            pairs = zip(loads, quotas, strict=True)
            assert all(load.largest_tokens <= quota.tokens for load, quota in pairs)
        if len(loads) <= total.seats:
            assert all(quota.seats >= 1 for quota in quotas)

    @given(total=TOTALS, loads=LOADS, slo_s=SLOS)
    def test_tokens_equal_the_naive_shares(
        self, total: Quota, loads: list[LaneLoad], slo_s: float
    ) -> None:
        """Each quota is within a token of max(one request, scale * Tok_min)."""
        least = [load.largest_tokens for load in loads]
        needs = token_needs(loads, slo_s)
        if sum(least) > total.tokens:
            needs, least = [float(amount) for amount in least], [0] * len(least)
        expected = naive_shares(total.tokens, needs, least)
        actual = [quota.tokens for quota in lane_quotas(total, loads, slo_s)]
        assert expected == pytest.approx(actual, abs=1.01, rel=1e-6)

    @given(loads=LOADS, slo_s=SLOS)
    def test_ample_total_covers_every_need(self, loads: list[LaneLoad], slo_s: float) -> None:
        """When needs and single requests fit together, each lane has its Tok_min."""
        needs = token_needs(loads, slo_s)
        ample = int(sum(needs)) + sum(load.largest_tokens for load in loads) + len(loads)
        quotas = lane_quotas(Quota(ample, 10), loads, slo_s)
        pairs = zip(needs, quotas, strict=True)
        assert all(need < quota.tokens + 1 for need, quota in pairs)


class TestQuotaBook:
    def test_charge_takes_a_seat_and_tokens(self) -> None:
        """What is borrowed is used and no longer free."""
        book = QuotaBook([Quota(100, 2), Quota(50, 1)])
        charge = book.try_charge(30, (0,))
        assert charge == QuotaCharge(((0, 30),), 0)
        assert (Quota(30, 1), Quota(70, 1)) == (book.used(0), book.free(0))
        assert (Quota(0, 0), Quota(50, 1)) == (book.used(1), book.free(1))

    def test_sources_are_drawn_in_their_order(self) -> None:
        """Lane 2 gives all it has before lane 0 gives the rest; lane 1 is not asked."""
        book = QuotaBook([Quota(100, 0), Quota(100, 9), Quota(40, 0), Quota(1, 3)])
        charge = book.try_charge(60, (2, 0, 3))
        assert charge == QuotaCharge(((2, 40), (0, 20)), 3)

    def test_source_named_twice_lends_once(self) -> None:
        """A lane's free tokens count once, however often it is named."""
        assert QuotaBook([Quota(10, 1)]).try_charge(20, (0, 0)) is None

    def test_request_without_tokens_takes_only_a_seat(self) -> None:
        """A need of 0 tokens is covered by a seat."""
        assert QuotaBook([Quota(0, 1)]).try_charge(0, (0,)) == QuotaCharge((), 0)

    def test_failed_charge_changes_nothing(self) -> None:
        """Too few tokens, no seat or no source: None, and nothing is borrowed."""
        book = QuotaBook([Quota(10, 1), Quota(10, 0)])
        assert book.try_charge(21, (0, 1)) is None
        assert book.try_charge(5, (1,)) is None
        assert book.try_charge(0, ()) is None
        assert (Quota(0, 0), Quota(0, 0)) == (book.used(0), book.used(1))

    def test_charges_of_a_lost_lane_are_owed_to_the_last(self) -> None:
        """From three lanes to two: lane 2's tokens and seat count in lane 1, and go back there."""
        book = QuotaBook([Quota(10, 1)] * 3)
        charge = book.try_charge(8, (2,))
        assert charge is not None
        book.relimit([Quota(20, 2), Quota(5, 1)])
        assert book.limits == (Quota(20, 2), Quota(5, 1))
        assert book.used(1) == Quota(8, 1)
        book.give_back(charge)
        assert book.used(1) == Quota(0, 0)

    def test_lane_over_its_new_limit_lends_nothing(self) -> None:
        """Free is 0, not negative, and a charge goes elsewhere or not at all."""
        book = QuotaBook([Quota(10, 2), Quota(10, 2)])
        assert book.try_charge(9, (1,)) is not None
        book.relimit([Quota(10, 2), Quota(4, 1)])
        assert book.free(1) == Quota(0, 0)
        assert book.try_charge(1, (1,)) is None
        assert book.try_charge(1, (1, 0)) == QuotaCharge(((0, 1),), 0, epoch=1)

    def test_charge_owed_to_a_merged_lane_stays_there_when_lanes_return(self) -> None:
        """Lanes 3 -> 1 -> 3: lane 2's old charge is lane 0's, its new charge its own."""
        book = QuotaBook([Quota(10, 1)] * 3)
        old = book.try_charge(7, (2,))
        book.relimit([Quota(30, 3)])
        book.relimit([Quota(10, 1)] * 3)
        new = book.try_charge(5, (2,))
        assert old is not None
        assert new is not None
        assert [book.used(lane).tokens for lane in range(3)] == [7, 0, 5]
        book.give_back(old)
        assert [book.used(lane).tokens for lane in range(3)] == [0, 0, 5]
        book.give_back(new)
        assert [book.used(lane) for lane in range(3)] == [Quota(0, 0)] * 3

    @pytest.mark.parametrize("need_tokens", [0, 5])
    def test_giving_back_twice_is_impossible(self, need_tokens: int) -> None:
        """A second return stops the run instead of making quota up."""
        book = QuotaBook([Quota(10, 1)])
        charge = book.try_charge(need_tokens, (0,))
        assert charge is not None
        book.give_back(charge)
        with pytest.raises(AssertionError, match="given back before"):
            book.give_back(charge)

    def test_negative_need_is_impossible(self) -> None:
        """A request that needs fewer than 0 tokens stops the run."""
        with pytest.raises(AssertionError, match="-1 tokens"):
            QuotaBook([Quota(10, 1)]).try_charge(-1, (0,))

    @pytest.mark.parametrize("limits", [[], [Quota(-1, 1)], [Quota(1, -1)]])
    def test_impossible_limits_stop_the_run(self, limits: list[Quota]) -> None:
        """There is a lane, and no limit is negative, at the start and later."""
        with pytest.raises(AssertionError):
            QuotaBook(limits)
        with pytest.raises(AssertionError):
            QuotaBook([Quota(1, 1)]).relimit(limits)


class _Debt:
    """A charge, and the lanes that a plain follower of all relimits says it is owed to."""

    def __init__(self, charge: QuotaCharge) -> None:
        self.charge = charge
        self.tokens = dict(charge.parts)
        self.seat_lane = charge.seat_lane

    def fold(self, lanes: int) -> None:
        tokens: dict[int, int] = {}
        for lane, amount in self.tokens.items():
            home = min(lane, lanes - 1)
            tokens[home] = tokens.get(home, 0) + amount
        self.tokens = tokens
        self.seat_lane = min(self.seat_lane, lanes - 1)


class QuotaBookMachine(RuleBasedStateMachine):
    """The book against a list of debts, through charges, returns and new limits."""

    running = Bundle("running")

    def __init__(self) -> None:
        super().__init__()
        self.limits = [Quota(100, 4), Quota(60, 3), Quota(20, 2)]
        self.book = QuotaBook(self.limits)
        self.debts: list[_Debt] = []
        self.was_within = True

    def owed(self, lane: int) -> Quota:
        return Quota(
            sum(debt.tokens.get(lane, 0) for debt in self.debts),
            sum(debt.seat_lane == lane for debt in self.debts),
        )

    @rule(target=running, need=st.integers(0, 120), lanes=st.lists(st.integers(0, 3), max_size=4))
    def charge(self, need: int, lanes: list[int]) -> _Debt | None:
        sources = [lane for lane in lanes if lane < len(self.limits)]
        free = [self.book.free(lane) for lane in dict.fromkeys(sources)]
        is_coverable = sum(f.tokens for f in free) >= need and any(f.seats for f in free)
        charge = self.book.try_charge(need, sources)
        assert is_coverable == (charge is not None)
        if charge is None:
            return None
        assert need == sum(tokens for _, tokens in charge.parts)
        debt = _Debt(charge)
        self.debts.append(debt)
        return debt

    @rule(debt=consumes(running))
    def give_back(self, debt: _Debt | None) -> None:
        if debt in self.debts:
            self.debts.remove(debt)
            self.book.give_back(debt.charge)

    @rule()
    def give_back_all(self) -> None:
        while self.debts:
            self.book.give_back(self.debts.pop().charge)
        assert all(self.book.used(i) == Quota(0, 0) for i in range(len(self.limits)))

    @rule(limits=LIMITS)
    def relimit(self, limits: list[Quota]) -> None:
        self.limits = limits
        self.book.relimit(limits)
        for debt in self.debts:
            debt.fold(len(limits))
        self.was_within = False

    @invariant()
    def book_agrees_with_the_debts(self) -> None:
        for lane, limit in enumerate(self.limits):
            used, free = self.book.used(lane), self.book.free(lane)
            assert self.owed(lane) == used
            assert (
                Quota(max(0, limit.tokens - used.tokens), max(0, limit.seats - used.seats)) == free
            )

    @invariant()
    def lanes_within_their_limits_stay_there(self) -> None:
        is_within = all(
            used.tokens <= limit.tokens and used.seats <= limit.seats
            for limit, used in ((q, self.book.used(i)) for i, q in enumerate(self.limits))
        )
        assert is_within or not self.was_within
        self.was_within = is_within


TestQuotaBookMachine = QuotaBookMachine.TestCase
