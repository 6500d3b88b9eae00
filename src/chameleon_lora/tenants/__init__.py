"""Who may use a server, which adapters each may name, and how much of it each may have.

Pure: files are read and time is told elsewhere.
"""

from chameleon_lora.tenants.allowance import Allowances, Charge, Refusal
from chameleon_lora.tenants.asking import Ask, ask_of
from chameleon_lora.tenants.keys import KeyHash, digest_of, hash_key, is_one_of, parse_hash
from chameleon_lora.tenants.roster import Roster, parse_tenants
from chameleon_lora.tenants.tenant import Tenant, salted

__all__ = [
    "Allowances",
    "Ask",
    "Charge",
    "KeyHash",
    "Refusal",
    "Roster",
    "Tenant",
    "ask_of",
    "digest_of",
    "hash_key",
    "is_one_of",
    "parse_hash",
    "parse_tenants",
    "salted",
]
