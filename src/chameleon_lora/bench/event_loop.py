"""The event loop that load generators run on."""

import asyncio
import contextlib
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

_new_loop: Callable[[], asyncio.AbstractEventLoop] = asyncio.new_event_loop
with contextlib.suppress(ImportError):  # it comes with vLLM, and the base install has none
    import uvloop

    _new_loop = uvloop.new_event_loop

Result = TypeVar("Result")


def run_loop(work: Coroutine[Any, Any, Result]) -> Result:
    """What `work` returns; on uvloop where that is installed (`bench/load_generator.py` compares)."""
    with asyncio.Runner(loop_factory=_new_loop) as runner:
        return runner.run(work)
