"""Who asks: known to all that runs for one HTTP request, in this process.

The middleware (`auth`) notes it where a request comes in; what vLLM starts for that request inherits the note. A client
cannot write it. Outside of a request, at start-up for one, nobody asks, and everything is allowed.
"""

from contextvars import ContextVar
from dataclasses import dataclass

from chameleon_lora.tenants import Tenant


@dataclass(slots=True)
class CallerContext:
    """One HTTP request that was let in. Owner: the middleware.

    Attributes:
        tenant: None for the admin, and on a server without tenants.
        may_control: whether it may load and unload adapters.
        input_tokens: of the prompts it had the engine read, so far.
        output_tokens: of the answers it had the engine write, so far.
        unfinished: answers begun and not ended, or broken off: how much of their prompts was read is not
            known.
    """

    tenant: Tenant | None
    may_control: bool
    input_tokens: int = 0
    output_tokens: int = 0
    unfinished: int = 0


CALLER: ContextVar[CallerContext | None] = ContextVar("chameleon_caller", default=None)


def calling_tenant() -> Tenant | None:
    """The tenant that asks, or None if whoever asks may name everything."""
    caller = CALLER.get()
    return None if caller is None else caller.tenant


def may_name(adapter: str) -> bool:
    """Whether whoever asks may know of an adapter of this name."""
    tenant = calling_tenant()
    return tenant is None or tenant.may_name(adapter)


def may_control() -> bool:
    """Whether whoever asks may load and unload adapters."""
    caller = CALLER.get()
    return caller is None or caller.may_control
