"""What the engine process understands beyond vLLM.

Adapters announced, withdrawn and pinned by name, and questions about its state.
"""

from collections.abc import Callable
from typing import Any

from chameleon_lora.engine_vllm.core.driver import Driver
from chameleon_lora.engine_vllm.core.state import metrics_of, state_of
from chameleon_lora.engine_vllm.messages import Announcement


def announcing(stock: Callable[..., Any]) -> Callable[..., bool]:
    """EngineCore.add_lora that takes an adapter without loading it."""

    def add_lora(engine: Any, lora_request: Any) -> bool:
        driver = driver_of(engine)
        if driver is None:
            return bool(stock(engine, lora_request))
        is_3d = bool(getattr(lora_request, "is_3d_lora_weight", False))
        driver.announce(
            Announcement(lora_request.lora_name, lora_request.lora_path, "", 0, 0, is_3d)
        )
        return True

    return add_lora


def announce(engine: Any, sources: list[Any]) -> int:
    """Each source is an Announcement's fields in order; answers how many were taken."""
    driver = driver_of(engine)
    if driver is None:
        return 0
    for fields in sources:
        driver.announce(Announcement(*fields))
    return len(sources)


def withdraw(engine: Any, names: list[Any]) -> int:
    """Answers how many of the names were known."""
    driver = driver_of(engine)
    return 0 if driver is None else sum(driver.withdraw(name) for name in names)


def pin(engine: Any, name: str, is_pinned: bool) -> str:
    """An empty string if it was done, else the reason why not."""
    driver = driver_of(engine)
    return "this engine has no adapters" if driver is None else driver.pin(name, is_pinned)


def state(engine: Any) -> dict[str, Any] | None:
    """The page that explains waits; None for another engine."""
    driver = driver_of(engine)
    return None if driver is None else state_of(driver)


def metrics(engine: Any) -> dict[str, Any] | None:
    """The numbers of the metrics page; None for another engine."""
    driver = driver_of(engine)
    return None if driver is None else metrics_of(driver)


def arrivals(engine: Any, number: int) -> dict[str, Any] | None:
    """The requests counted after the `number`-th; None for another engine."""
    driver = driver_of(engine)
    return None if driver is None else driver.arrivals.after(number)


def driver_of(engine: Any) -> Driver | None:
    """The driver of a Chameleon engine, None for another engine."""
    return getattr(engine.scheduler, "chameleon", None)
