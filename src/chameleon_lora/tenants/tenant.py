"""One tenant: its keys, the adapters it may name, and its limits."""

import re
from dataclasses import dataclass
from fnmatch import fnmatchcase

from chameleon_lora.errors import ConfigError
from chameleon_lora.tenants.keys import KeyHash

LEAST, MOST = 1e-6, 1e15  # of a limit
_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,63}")


@dataclass(frozen=True, slots=True)
class Tenant:
    """Who a key stands for. A limit that is None does not limit.

    Attributes:
        adapters: patterns of names, as in a shell: `*`, `?`, `[abc]`.
        base_model: whether it may name the base model.
        share_prefixes: whether prompts cached for others who share are found cached for it, and its
            own for them.
        weight: what it gets of a contended lane, against the weights of others.
        requests_per_s: how many it may send, in the long run.
        burst: how many of them at once; without it, those of one second, at least 1.
        input_tokens_per_minute: of prompts; a minute's worth may come at once.
        output_tokens_per_minute: of answers, in the same way.
    """

    name: str
    keys: tuple[KeyHash, ...]
    adapters: tuple[str, ...] = ()
    base_model: bool = False
    share_prefixes: bool = False
    weight: float = 1.0
    requests_per_s: float | None = None
    burst: int | None = None
    input_tokens_per_minute: int | None = None
    output_tokens_per_minute: int | None = None

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ConfigError(
                f"the name {self.name!r} is not allowed: use up to 64 letters, digits, '.', '_' "
                "and '-', the first a letter or digit"
            )
        if not self.keys:
            raise ConfigError("keys is empty, the least is 1: nobody could be this tenant")
        if "" in self.adapters:
            raise ConfigError("adapters holds '', which names no adapter; leave it out")
        if not 1e-3 <= self.weight <= 1e3:
            raise ConfigError(f"weight is {self.weight:g}; use 0.001 to 1000")
        limits = ("requests_per_s", "burst", "input_tokens_per_minute", "output_tokens_per_minute")
        for key in limits:
            value = getattr(self, key)
            if value is not None and not LEAST <= value <= MOST:
                shown = f"above {MOST:g}" if value > MOST else f"{value:g}"
                raise ConfigError(
                    f"{key} is {shown}; use more than 0 and up to {MOST:g}, or leave it out for no limit"
                )
        if self.burst is not None and self.requests_per_s is None:
            raise ConfigError(f"burst is {self.burst} without requests_per_s; give both or neither")

    def may_name(self, adapter: str) -> bool:
        """Whether the tenant may know of an adapter of this name."""
        return any(fnmatchcase(adapter, pattern) for pattern in self.adapters)


def salted(tenant: Tenant | None, salt: str | None) -> str | None:
    """The salt under which a request's prompt is cached: prompts of two salts share nothing.

    `salt` is the client's own. No name of a tenant holds a colon, so none writes another's. The admin
    (None) and the tenants that share have one place together, which needs no salt.
    """
    name = "" if tenant is None or tenant.share_prefixes else tenant.name
    return f"{name}:{salt or ''}" if name or salt else None
