"""Two tenants, and what it is to run for a request of one."""

import asyncio
from collections.abc import Awaitable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from chameleon_lora.engine_vllm.api.caller import CALLER, CallerContext
from chameleon_lora.tenants import KeyHash, Tenant

T = TypeVar("T")
ACME = Tenant("acme", (KeyHash(b"1"),), ("acme-*",), base_model=True, weight=2.0)
BOB = Tenant("bob", (KeyHash(b"2"),), ("bob-*",))


@contextmanager
def called_by(tenant: Tenant | None, *, may_control: bool = False) -> Iterator[CallerContext]:
    """What runs inside runs for a request of this tenant."""
    caller = CallerContext(tenant, may_control)
    token = CALLER.set(caller)
    try:
        yield caller
    finally:
        CALLER.reset(token)


def run(work: Awaitable[T]) -> T:
    """What it answers."""

    async def wait() -> T:
        return await work

    return asyncio.run(wait())
