"""Who may use a server, which adapters each may name, and how much of it each may have.

Pure: files are read and time is told elsewhere.
"""

from chameleon_lora.tenants.keys import KeyHash, digest_of, hash_key, is_one_of, parse_hash
from chameleon_lora.tenants.rate_limiter import RateLimiter, Refusal, TokenCharge
from chameleon_lora.tenants.registry import TenantRegistry, parse_tenants
from chameleon_lora.tenants.tenant import Tenant, salted
from chameleon_lora.tenants.token_estimate import TokenEstimate, estimate_of

__all__ = [
    "KeyHash",
    "RateLimiter",
    "Refusal",
    "Tenant",
    "TenantRegistry",
    "TokenCharge",
    "TokenEstimate",
    "digest_of",
    "estimate_of",
    "hash_key",
    "is_one_of",
    "parse_hash",
    "parse_tenants",
    "salted",
]
