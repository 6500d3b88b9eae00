"""What a tenant has left of its limits."""

from dataclasses import replace

import pytest

from chameleon_lora.tenants import (
    KeyHash,
    RateLimiter,
    Refusal,
    Tenant,
    TokenCharge,
    TokenEstimate,
)

FREE = Tenant("free", (KeyHash(b"1"),))
RATED = replace(FREE, name="rated", requests_per_s=2.0, burst=3)
METERED = replace(FREE, name="metered", input_tokens_per_minute=600, output_tokens_per_minute=120)


def charged(found: TokenCharge | Refusal) -> TokenCharge:
    """The charge of one that was let in."""
    assert isinstance(found, TokenCharge), found
    return found


def refused(found: TokenCharge | Refusal) -> Refusal:
    """Why one was not let in."""
    assert isinstance(found, Refusal)
    return found


def test_without_limits_everything_goes() -> None:
    """Any number, of any size."""
    allowances = RateLimiter()
    for _ in range(1000):
        charged(allowances.charge(FREE, TokenEstimate(10**9, 10**9), 0.0))


def test_a_burst_then_the_rate() -> None:
    """Three at once, then one each half second; the refusal names rate, burst and when to come."""
    allowances = RateLimiter()
    assert [None] * 3 == [allowances.admit(RATED, 0.0) for _ in range(3)]
    refusal = allowances.admit(RATED, 0.0)
    assert refusal is not None
    assert 0.5 == refusal.retry_s
    assert "2 requests a second, 3 at once" in refusal.reason
    assert allowances.admit(RATED, 0.5) is None


@pytest.mark.parametrize(("rate", "burst"), [(0.1, 1), (5.0, 5)])
def test_without_a_burst_one_seconds_worth_may_come_at_once(rate: float, burst: int) -> None:
    """At least one."""
    tenant, allowances = replace(FREE, requests_per_s=rate), RateLimiter()
    found = [allowances.admit(tenant, 0.0) is None for _ in range(burst + 1)]
    assert [True] * burst + [False] == found


def test_tenants_do_not_share_limits() -> None:
    """One that spent its own leaves the others theirs."""
    allowances = RateLimiter()
    for name in ("one", "two"):
        assert [None] * 3 == [allowances.admit(replace(RATED, name=name), 0.0) for _ in range(3)]


def test_max_tokens_are_charged_at_once() -> None:
    """A request that asks for all that is left keeps the next one out; the refusal says by how much."""
    allowances = RateLimiter()
    charged(allowances.charge(METERED, TokenEstimate(1, 100), 0.0))
    refusal = refused(allowances.charge(METERED, TokenEstimate(1, 30), 0.0))
    assert 5.0 == refusal.retry_s
    assert "120 output tokens a minute; this request asks for 30, 20 are left" in refusal.reason


def test_what_was_not_used_comes_back() -> None:
    """When the request ends."""
    allowances = RateLimiter()
    charge = charged(allowances.charge(METERED, TokenEstimate(600, 120), 0.0))
    allowances.settle(charge, TokenEstimate(10, 20), 0.0)
    charged(allowances.charge(METERED, TokenEstimate(590, 100), 0.0))
    refused(allowances.charge(METERED, TokenEstimate(1, 0), 0.0))


def test_what_was_used_beyond_is_a_debt() -> None:
    """It is paid before the next one is let in."""
    allowances = RateLimiter()
    charge = charged(allowances.charge(METERED, TokenEstimate(0, 100), 0.0))
    allowances.settle(charge, TokenEstimate(0, 180), 0.0)
    refusal = refused(allowances.charge(METERED, TokenEstimate(0, 10), 0.0))
    assert 35.0 == refusal.retry_s


def test_what_never_fits_is_told_so() -> None:
    """More than a minute's worth of answer is refused without a time to come again."""
    refusal = refused(RateLimiter().charge(METERED, TokenEstimate(0, 121), 0.0))
    assert None is refusal.retry_s
    assert "121" in refusal.reason
    assert "lower max_tokens" in refusal.reason


def test_an_estimate_never_keeps_a_prompt_out_for_ever() -> None:
    """A prompt estimated above the quota is charged the quota, and with what it was in the end."""
    allowances = RateLimiter()
    charge = charged(allowances.charge(METERED, TokenEstimate(10**6, 0), 0.0))
    assert 600 == charge.estimate.input_tokens
    allowances.settle(charge, TokenEstimate(100, 0), 0.0)
    charged(allowances.charge(METERED, TokenEstimate(500, 0), 0.0))


def test_a_refused_request_costs_no_tokens() -> None:
    """Neither of the limit that refused it nor of the other; nor does one too many cost another."""
    allowances = RateLimiter()
    for _ in range(5):
        refused(allowances.charge(METERED, TokenEstimate(0, 500), 0.0))
        allowances.admit(RATED, 0.0)
    charged(allowances.charge(METERED, TokenEstimate(600, 120), 0.0))
    assert allowances.admit(RATED, 0.5) is None


def test_an_open_answer_is_never_kept_out_for_ever() -> None:
    """What it may be at the most is charged up to the quota; one that asks for as much is refused."""
    allowances = RateLimiter()
    charge = charged(allowances.charge(METERED, TokenEstimate(0, 10**6, is_open=True), 0.0))
    assert 120 == charge.estimate.output_tokens
    refused(allowances.charge(METERED, TokenEstimate(0, 10**6), 60.0))


def test_new_limits_hold_at_once() -> None:
    """Of a tenant whose entry in the file has changed; what it used stays used."""
    allowances = RateLimiter()
    charged(allowances.charge(METERED, TokenEstimate(0, 120), 0.0))
    richer = replace(METERED, output_tokens_per_minute=240)
    charged(allowances.charge(richer, TokenEstimate(0, 120), 0.0))
    refused(allowances.charge(richer, TokenEstimate(0, 1), 0.0))
    charged(
        allowances.charge(
            replace(METERED, output_tokens_per_minute=None), TokenEstimate(0, 999), 0.0
        )
    )


def test_one_that_is_no_tenant_any_more_is_forgotten() -> None:
    """And a charge of it that ends later harms nobody."""
    allowances = RateLimiter()
    charge = charged(allowances.charge(METERED, TokenEstimate(0, 120), 0.0))
    allowances.keep(frozenset())
    allowances.settle(charge, TokenEstimate(0, 10), 0.0)
    charged(allowances.charge(METERED, TokenEstimate(0, 120), 0.0))
