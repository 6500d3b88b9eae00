"""How much may each lane have in flight, and who has borrowed what?

Two resources are shared alike: tokens (input, predicted output and the adapter's bytes in KV
tokens) and seats (requests the engine runs at once). Paper §4.3; deviations in ADR 0004.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction


@dataclass(frozen=True, slots=True)
class LaneLoad:
    """What a lane has to carry.

    Attributes:
        largest_tokens: its largest request, the paper's S.
        mean_duration_s: how long its requests run, the paper's D.
        arrivals_per_s: the paper's lambda.
    """

    largest_tokens: int
    mean_duration_s: float
    arrivals_per_s: float


@dataclass(frozen=True, slots=True)
class Quota:
    """An amount of both resources."""

    tokens: int
    seats: int


@dataclass(frozen=True, slots=True)
class QuotaCharge:
    """What one running request has borrowed; the book that made it takes it back once.

    Attributes:
        parts: (lane, tokens) with tokens > 0, at most one per lane.
        seat_lane: the lane whose seat it sits on.
        epoch: how many times the book had been given new limits; lane numbers are of that time.
    """

    parts: tuple[tuple[int, int], ...]
    seat_lane: int
    epoch: int = 0


def lane_quotas(total: Quota, loads: Sequence[LaneLoad], slo_s: float) -> tuple[Quota, ...]:
    """The quota of each lane; tokens and seats each sum to exactly the total.

    A lane needs D * (1/SLO + lambda) requests in flight for a residence of at most SLO in K*M/M/1,
    and S times as many tokens (paper §4.3, Tok_min). The total is shared in proportion to the
    needs, which gives each its need and a like part of the rest, or less than its need when they
    exceed the total. No lane gets less than one request, one seat, while the total allows; if it
    does not allow, it is shared in proportion to those least amounts (ADR 0004).
    """
    assert slo_s > 0, f"an objective of {slo_s} s cannot be met"
    if not loads:
        return ()
    seat_needs = [_seats_needed(load, slo_s) for load in loads]
    token_needs = [n * load.largest_tokens for n, load in zip(seat_needs, loads, strict=True)]
    tokens = _share(total.tokens, token_needs, [load.largest_tokens for load in loads])
    seats = _share(total.seats, seat_needs, [1] * len(loads))
    return tuple(Quota(t, s) for t, s in zip(tokens, seats, strict=True))


def _seats_needed(load: LaneLoad, slo_s: float) -> Fraction:
    """D * (1/SLO + lambda), exact: rounding would show in sums that must be exact."""
    assert min(load.largest_tokens, load.mean_duration_s, load.arrivals_per_s) >= 0, load
    return Fraction(load.mean_duration_s) * (1 / Fraction(slo_s) + Fraction(load.arrivals_per_s))


def _share(total: int, needs: Sequence[Fraction], least: Sequence[int]) -> list[int]:
    """Whole numbers that sum to total: in proportion to the needs, but none below its least."""
    if sum(least) > total:
        needs, least = [Fraction(amount) for amount in least], [0] * len(least)
    elif not any(needs):
        needs = [Fraction(1)] * len(needs)
    shares = [Fraction(amount) for amount in least]
    open_lanes = list(range(len(needs)))
    while True:  # each round settles a lane at its least, or ends
        rest = total - sum(least[i] for i in range(len(needs)) if i not in open_lanes)
        scale = rest / sum((needs[i] for i in open_lanes), Fraction(0))
        above = [i for i in open_lanes if scale * needs[i] >= least[i]]
        if len(above) == len(open_lanes):
            break
        open_lanes = above
    for i in open_lanes:
        shares[i] = scale * needs[i]
    return _whole(total, shares)


def _whole(total: int, shares: Sequence[Fraction]) -> list[int]:
    """Shares as whole numbers of the same sum, by largest remainder; of equals the lower lane."""
    whole = [int(share) for share in shares]
    by_remainder = sorted(range(len(shares)), key=lambda i: whole[i] - shares[i])
    for i in by_remainder[: total - sum(whole)]:
        whole[i] += 1
    return whole


class QuotaBook:
    """What each lane may borrow and what is borrowed from it. Lives with an engine.

    Invariant: 0 <= used, and used <= limit as long as the limits stay; new limits may be below
    what is in use, and then nothing is lent until enough has come back. When all charges are
    given back, used is zero in every lane, whatever the limits were in between.
    """

    def __init__(self, limits: Sequence[Quota]) -> None:
        self._epoch = 0
        # (epoch, lanes) of those relimits after which no later one had as few lanes or fewer
        self._narrowings: list[tuple[int, int]] = []
        self._limits = _checked(limits)
        self._used_tokens = [0] * len(limits)
        self._used_seats = [0] * len(limits)

    @property
    def limits(self) -> tuple[Quota, ...]:
        """The limits in force, by lane."""
        return self._limits

    def used(self, lane: int) -> Quota:
        """What running requests have borrowed from the lane."""
        return Quota(self._used_tokens[lane], self._used_seats[lane])

    def free(self, lane: int) -> Quota:
        """What the lane may still lend; never negative."""
        limit = self._limits[lane]
        return Quota(
            max(0, limit.tokens - self._used_tokens[lane]),
            max(0, limit.seats - self._used_seats[lane]),
        )

    def need_tokens(self, cost_tokens: int, lane: int, sources: Sequence[int]) -> int:
        """What a request of this lane is to borrow: its cost, or less if that is above the quota.

        One above its lane's whole quota takes that quota and what is spare, once nothing of it is in
        flight or lent (ADR 0009). Sources are different lanes, its own among them.
        """
        limit = self._limits[lane]
        need = min(cost_tokens, sum(quota.tokens for quota in self._limits))
        if need > limit.tokens and len(sources) > 1 and self.free(lane) == limit:
            need = min(need, sum(self.free(source).tokens for source in sources))
        return need

    def try_charge(self, need_tokens: int, sources: Sequence[int]) -> QuotaCharge | None:
        """Borrows one seat and need_tokens from the source lanes, or nothing at all (None).

        The seat comes from the first source that has one, the tokens from each in turn.
        """
        assert need_tokens >= 0, f"a request cannot need {need_tokens} tokens"
        seat_lane: int | None = None
        parts: list[tuple[int, int]] = []
        for lane in dict.fromkeys(sources):
            limit = self._limits[lane]
            if seat_lane is None and self._used_seats[lane] < limit.seats:
                seat_lane = lane
            tokens = min(need_tokens, limit.tokens - self._used_tokens[lane])
            if tokens > 0:
                parts.append((lane, tokens))
                need_tokens -= tokens
        if seat_lane is None or need_tokens:
            return None
        for lane, tokens in parts:
            self._used_tokens[lane] += tokens
        self._used_seats[seat_lane] += 1
        return QuotaCharge(tuple(parts), seat_lane, self._epoch)

    def give_back(self, charge: QuotaCharge) -> None:
        """The charge is no longer borrowed. Each charge of this book goes back once."""
        last = self._last_lane_since(charge.epoch)
        for lane, tokens in charge.parts:
            home = min(lane, last)
            self._used_tokens[home] -= tokens
            assert self._used_tokens[home] >= 0, f"{charge} was given back before"
        home = min(charge.seat_lane, last)
        self._used_seats[home] -= 1
        assert self._used_seats[home] >= 0, f"{charge} was given back before"

    def relimit(self, limits: Sequence[Quota]) -> None:
        """New limits, maybe of another number of lanes; what is borrowed stays borrowed.

        What was borrowed from a lane that is no more is now owed to the last lane.
        """
        self._limits = _checked(limits)
        lanes = len(limits)
        self._used_tokens = _folded(self._used_tokens, lanes)
        self._used_seats = _folded(self._used_seats, lanes)
        self._epoch += 1
        while self._narrowings and self._narrowings[-1][1] >= lanes:
            self._narrowings.pop()
        self._narrowings.append((self._epoch, lanes))

    def _last_lane_since(self, epoch: int) -> int:
        """The lowest last lane since the epoch: no charge of that time is owed to a later lane."""
        for narrowed, lanes in self._narrowings:
            if narrowed > epoch:
                return lanes - 1
        return len(self._limits) - 1


def _checked(limits: Sequence[Quota]) -> tuple[Quota, ...]:
    assert limits, "there is always a lane"
    assert all(min(limit.tokens, limit.seats) >= 0 for limit in limits), limits
    return tuple(limits)


def _folded(used: list[int], lanes: int) -> list[int]:
    """What is used, over another number of lanes: what is beyond the last goes to the last."""
    kept = used[:lanes] + [0] * (lanes - len(used))
    kept[-1] += sum(used[lanes:])
    return kept
