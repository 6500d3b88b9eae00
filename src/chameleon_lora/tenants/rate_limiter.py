"""How much of its limits each tenant has left.

A request is counted before its body is read. Charged before it runs are the tokens it asks for; afterwards, what it used. So over time exactly what
was used counts, whatever was asked for. One that used more than was charged leaves a debt, and no
request of its tenant is let in before that is paid.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass

from chameleon_lora.tenants.tenant import Tenant
from chameleon_lora.tenants.token_estimate import TokenEstimate

MINUTE_S = 60.0


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a request is not let in.

    Attributes:
        retry_s: when it would be, if nothing else comes; None if never.
    """

    reason: str
    retry_s: float | None


@dataclass(frozen=True, slots=True)
class TokenCharge:
    """Tokens taken in advance for one request, to be settled with what it used."""

    tenant: str
    estimate: TokenEstimate


class Bucket:
    """A token bucket: so much a second in the long run, and a capacity of it at once.

    Owner: one tenant's limit. Time never runs backwards in it.

    Invariant: the level never exceeds the capacity. Below zero it is in debt: more was used than had
    been taken before.
    """

    def __init__(self, per_s: float, capacity: float, now_s: float) -> None:
        self.per_s = per_s
        self.capacity = capacity
        self._level = capacity
        self._at_s = now_s

    def level(self, now_s: float) -> float:
        """The bucket's level, refilled up to the capacity; below zero while in debt. Changes nothing."""
        passed_s = max(0.0, now_s - self._at_s)
        return min(self.capacity, self._level + passed_s * self.per_s)

    def wait_s(self, amount: float, now_s: float) -> float:
        """How long until it holds so much; 0 if it does, infinity if it never will."""
        if amount > self.capacity:
            return math.inf
        return max(0.0, (amount - self.level(now_s)) / self.per_s)

    def take(self, amount: float, now_s: float) -> None:
        """Afterwards it holds so much less; a negative amount is given back."""
        self._level = min(self.capacity, self.level(now_s) - amount)
        self._at_s = max(self._at_s, now_s)

    def relimit(self, per_s: float, capacity: float, now_s: float) -> None:
        """Other limits from now on; what was used stays used, as far as the capacity goes."""
        used = self.capacity - self.level(now_s)
        self.per_s, self.capacity = per_s, capacity
        self._level = capacity - used
        self._at_s = max(self._at_s, now_s)


@dataclass(slots=True)
class _Buckets:
    requests: Bucket | None = None
    inputs: Bucket | None = None
    outputs: Bucket | None = None


class RateLimiter:
    """What every tenant has left. Owner: one API server; several servers count apart."""

    def __init__(self) -> None:
        self._buckets: dict[str, _Buckets] = {}

    def admit(self, tenant: Tenant, now_s: float) -> Refusal | None:
        """Count one request, before anything of it is read, or refuse it and count nothing."""
        bucket = self._limited(tenant, now_s).requests
        if bucket is None:
            return None
        if not (wait_s := bucket.wait_s(1, now_s)):
            bucket.take(1, now_s)
            return None
        return Refusal(
            f"Tenant '{tenant.name}' may send {tenant.requests_per_s:g} requests a second, "
            f"{bucket.capacity:g} at once, and has sent them: try again in {wait_s:.1f} s.",
            wait_s,
        )

    def charge(
        self, tenant: Tenant, estimate: TokenEstimate, now_s: float
    ) -> TokenCharge | Refusal:
        """Take the tokens that are asked for and let it in, or refuse it and take none.

        A prompt's tokens are an estimate, and those of an open answer the most there may be: above the
        quota they are charged as the whole quota.
        """
        held = self._limited(tenant, now_s)
        inputs, outputs = estimate.input_tokens, estimate.output_tokens
        if held.inputs is not None:
            inputs = min(inputs, int(held.inputs.capacity))
        if held.outputs is not None and estimate.is_open:
            outputs = min(outputs, int(held.outputs.capacity))
        estimate = TokenEstimate(inputs, outputs)
        refusal = next(_refusals(tenant, held, estimate, now_s), None)
        if refusal is not None:
            return refusal
        for bucket, amount in _amounts(held, estimate):
            bucket.take(amount, now_s)
        return TokenCharge(tenant.name, estimate)

    def settle(self, charge: TokenCharge, used: TokenEstimate, now_s: float) -> None:
        """The request ended: it counts with what it used."""
        over = TokenEstimate(
            used.input_tokens - charge.estimate.input_tokens,
            used.output_tokens - charge.estimate.output_tokens,
        )
        held = self._buckets.get(charge.tenant, _Buckets())
        for bucket, amount in _amounts(held, over):
            bucket.take(amount, now_s)

    def keep(self, names: frozenset[str]) -> None:
        """Forget those who are no tenants any more. O(tenants)."""
        if self._buckets.keys() <= names:
            return
        self._buckets = {name: held for name, held in self._buckets.items() if name in names}

    def _limited(self, tenant: Tenant, now_s: float) -> _Buckets:
        """The tenant's buckets, after its limits as they are now: None where it has none."""
        held = self._buckets.setdefault(tenant.name, _Buckets())
        rate = tenant.requests_per_s
        burst = tenant.burst or max(1.0, rate or 0.0)
        held.requests = _limited(held.requests, rate, burst, now_s)
        held.inputs = _per_minute(held.inputs, tenant.input_tokens_per_minute, now_s)
        held.outputs = _per_minute(held.outputs, tenant.output_tokens_per_minute, now_s)
        return held


def _per_minute(bucket: Bucket | None, tokens: int | None, now_s: float) -> Bucket | None:
    return _limited(bucket, None if tokens is None else tokens / MINUTE_S, tokens or 0, now_s)


def _limited(
    bucket: Bucket | None, per_s: float | None, capacity: float, now_s: float
) -> Bucket | None:
    if per_s is None:
        return None
    if bucket is None:
        return Bucket(per_s, capacity, now_s)
    if (bucket.per_s, bucket.capacity) != (per_s, capacity):
        bucket.relimit(per_s, capacity, now_s)
    return bucket


def _amounts(held: _Buckets, estimate: TokenEstimate) -> Iterator[tuple[Bucket, int]]:
    every = ((held.inputs, estimate.input_tokens), (held.outputs, estimate.output_tokens))
    return ((bucket, amount) for bucket, amount in every if bucket is not None)


def _refusals(
    tenant: Tenant, held: _Buckets, estimate: TokenEstimate, now_s: float
) -> Iterator[Refusal]:
    """Each limit of tokens that does not let it in now."""
    quotas = (
        (held.inputs, estimate.input_tokens, "input", "send a shorter prompt"),
        (held.outputs, estimate.output_tokens, "output", "lower max_tokens"),
    )
    for bucket, amount, kind, way_out in quotas:
        if bucket is None or not (wait_s := bucket.wait_s(amount, now_s)):
            continue
        left = math.floor(bucket.level(now_s))
        when = "never" if wait_s == math.inf else f"in {wait_s:.1f} s"
        yield Refusal(
            f"Tenant '{tenant.name}' may use {bucket.capacity:.0f} {kind} tokens a minute; this "
            f"request asks for {amount}, {left} are left and it would fit {when}: {way_out}"
            + ("." if wait_s == math.inf else ", or try again then."),
            None if wait_s == math.inf else wait_s,
        )
