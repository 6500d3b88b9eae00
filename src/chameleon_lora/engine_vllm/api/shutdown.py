"""How a server ends: told to, its streams end whole; without its engine, it says so and fails.

vLLM's own server answers new requests with nothing while it drains, and exits with status 0 when its
engine has died, which tells whoever watches it that all is well.
"""

import asyncio
import time
from collections.abc import Callable
from typing import Any

from chameleon_lora.engine_vllm.config import is_ours
from chameleon_lora.errors import EngineGoneError

SHUTTING_DOWN = "chameleon_is_shutting_down"
POLL_S = 0.05
DRAIN_S = (
    30  # for streams in flight after SIGTERM; Kubernetes kills after as long, if not told otherwise
)
SHUTDOWN_WORDS = "This server is shutting down and takes no new requests; ask again in a moment, or another replica."
GONE_WORDS = (
    "The engine has ended by itself, for the reason above, and the server cannot go on without it. "
    "Requests in flight were told. Start the server again."
)


def is_shutting_down(engine: Any) -> bool:
    """Whether this engine's server was told to end, or has lost it."""
    return bool(getattr(engine, SHUTTING_DOWN, False))


def ending(stock: Callable[..., None]) -> Callable[..., None]:
    """AsyncLLM.shutdown that first lets answers end, and fails if the engine had ended by itself.

    vLLM calls it in a thread of its own when it is told to end, so waiting here stops no stream. The
    engine's own draining is not enough: its last outputs are dropped with the process that reads them.
    """

    def shutdown(engine: Any, timeout: float | None = None) -> None:
        is_first = is_ours(getattr(engine, "vllm_config", None)) and not is_shutting_down(engine)
        if is_first:
            setattr(engine, SHUTTING_DOWN, True)
        has_died = is_first and _is_dead(engine)
        if is_first and not has_died and not _holds_up_streams():
            _drain(engine, timeout or 0.0)
        stock(engine, timeout=timeout)
        if has_died:
            raise EngineGoneError(GONE_WORDS)

    return shutdown


def _holds_up_streams() -> bool:
    """Whether this is the thread that writes them, as in vLLM 0.26, where they have ended by now."""
    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _drain(engine: Any, limit_s: float) -> None:
    """Returns once no request is unfinished, the engine is dead, or the time is over."""
    end_s = time.monotonic() + limit_s  # noqa: TID251 - a server's own clock
    while time.monotonic() < end_s and not _is_dead(engine):  # noqa: TID251
        if not engine.output_processor.get_num_unfinished_requests():
            return
        time.sleep(POLL_S)


def checking_health(stock: Callable[..., Any]) -> Callable[..., Any]:
    """AsyncLLM.check_health that fails from the word to end on, so that no new requests are sent."""

    async def check_health(engine: Any) -> None:
        if is_shutting_down(engine):
            raise engine.dead_error
        await stock(engine)

    return check_health


def _is_dead(engine: Any) -> bool:
    """Whether it, or whoever reads its outputs, has ended; False too for one that never started."""
    return bool(getattr(engine, "errored", False))
