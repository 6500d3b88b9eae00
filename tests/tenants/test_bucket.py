"""A token bucket, under any takings."""

import math
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from chameleon_lora.tenants.rate_limiter import Bucket

PER_S, CAPACITY = 3.0, 10.0


@dataclass(frozen=True, slots=True)
class Wish:
    """So much is wanted, so long after the last wish."""

    amount: float
    after_s: float


WISHES = st.lists(
    st.builds(Wish, amount=st.floats(0.0, 20.0), after_s=st.floats(0.0, 5.0)), max_size=50
)


@given(wishes=WISHES)
def test_it_never_gives_more_than_its_rate(wishes: list[Wish]) -> None:
    """Over any time, what was given is at most the capacity and what came in since."""
    bucket, now_s, given_out = Bucket(PER_S, CAPACITY, 0.0), 0.0, 0.0
    for wish in wishes:
        now_s += wish.after_s
        if bucket.wait_s(wish.amount, now_s) == 0.0:
            bucket.take(wish.amount, now_s)
            given_out += wish.amount
        assert given_out <= CAPACITY + PER_S * now_s + 1e-6
        assert -1e-9 <= bucket.level(now_s) <= CAPACITY


@given(wishes=WISHES, amount=st.floats(0.0, CAPACITY))
def test_the_wait_it_tells_is_long_enough(wishes: list[Wish], amount: float) -> None:
    """After it, and not before, so much can be taken; also out of a debt."""
    bucket, now_s = Bucket(PER_S, CAPACITY, 0.0), 0.0
    for wish in wishes:
        now_s += wish.after_s
        bucket.take(wish.amount, now_s)
    wait_s = bucket.wait_s(amount, now_s)
    assert bucket.wait_s(amount, now_s + wait_s + 1e-6) == 0.0
    assert wait_s < 1e-6 or bucket.wait_s(amount, now_s + 0.9 * wait_s) > 0.0


def test_what_exceeds_the_capacity_never_fits() -> None:
    """However long one waits."""
    assert math.inf == Bucket(PER_S, CAPACITY, 0.0).wait_s(CAPACITY + 1, 1e9)


def test_what_is_given_back_can_be_taken_again() -> None:
    """Up to the capacity."""
    bucket = Bucket(PER_S, CAPACITY, 0.0)
    bucket.take(10.0, 0.0)
    bucket.take(-4.0, 0.0)
    assert 4.0 == bucket.level(0.0)
    bucket.take(-40.0, 0.0)
    assert CAPACITY == bucket.level(0.0)


def test_a_clock_that_runs_back_gives_nothing() -> None:
    """Nor does it take away."""
    bucket = Bucket(PER_S, CAPACITY, 100.0)
    bucket.take(10.0, 100.0)
    bucket.take(0.0, 50.0)
    assert 3.0 == bucket.level(101.0)


def test_other_limits_keep_what_was_used() -> None:
    """A larger capacity is there at once, a smaller one may leave a debt."""
    bucket = Bucket(PER_S, CAPACITY, 0.0)
    bucket.take(8.0, 0.0)
    bucket.relimit(1.0, 20.0, 0.0)
    assert 12.0 == bucket.level(0.0)
    bucket.relimit(1.0, 5.0, 0.0)
    assert -3.0 == bucket.level(0.0)
