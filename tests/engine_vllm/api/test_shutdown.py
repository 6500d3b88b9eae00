"""How a server ends: what its engine's client does when it is told to, and when the engine is gone."""

import asyncio
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm import SCHEDULER
from chameleon_lora.engine_vllm.api.shutdown import checking_health, ending, is_shutting_down
from chameleon_lora.errors import EngineGoneError


class DeadError(Exception):
    """What vLLM raises for an engine that is gone."""


@dataclass
class Engine:
    """What of vLLM's AsyncLLM takes part in its end."""

    scheduler: str = SCHEDULER
    is_dead: bool = False
    left_over: int | None = None
    unfinished: int = 0
    calls: list[str] = field(default_factory=list)
    dead_error: Exception = field(default_factory=DeadError)

    def __post_init__(self) -> None:
        scheduler = SimpleNamespace(scheduler_cls=self.scheduler)
        self.vllm_config = SimpleNamespace(scheduler_config=scheduler)
        self.engine_core = SimpleNamespace(resources=SimpleNamespace(engine_dead=self.is_dead))
        self.output_handler: Any = None
        self.output_processor = self

    @property
    def errored(self) -> bool:
        """As vLLM tells it."""
        has_stopped = self.output_handler is not None and self.output_handler.done()
        return self.engine_core.resources.engine_dead or has_stopped

    def get_num_unfinished_requests(self) -> int:
        """One fewer each time somebody looks."""
        self.unfinished = max(0, self.unfinished - 1)
        return self.unfinished

    def stock_shutdown(self, timeout: float | None = None) -> None:
        """vLLM's own: afterwards the engine is gone."""
        self.calls.append(f"shutdown {timeout}")
        self.left_over = self.unfinished
        self.engine_core.resources.engine_dead = True

    async def stock_check_health(self) -> None:
        """vLLM's own, of an engine that is well."""
        self.calls.append("health")


shutdown = ending(Engine.stock_shutdown)
check_health = checking_health(Engine.stock_check_health)


def test_an_engine_that_died_ends_its_server_with_an_error() -> None:
    """After vLLM's own clean-up, and once only."""
    engine = Engine(is_dead=True)
    with pytest.raises(EngineGoneError, match="The engine has ended by itself"):
        shutdown(engine, timeout=3)
    shutdown(engine)
    assert ["shutdown 3", "shutdown None"] == engine.calls


def test_an_engine_whose_outputs_are_read_no_more_ends_its_server_with_an_error() -> None:
    """Whatever the reading stumbled over: no request has an answer any more."""
    engine = Engine()
    engine.output_handler = SimpleNamespace(done=lambda: True)
    with pytest.raises(EngineGoneError):
        shutdown(engine, timeout=3)


def test_a_server_that_is_told_to_end_does_so_without_an_error() -> None:
    """Though the second call finds an engine that is gone."""
    engine = Engine()
    shutdown(engine, timeout=30)
    shutdown(engine, timeout=30)
    assert is_shutting_down(engine)


def test_requests_in_flight_end_before_the_engine_does() -> None:
    """For as long as it was told; without a time, or with a dead engine, nobody waits."""
    patient, hasty, dead = Engine(unfinished=3), Engine(unfinished=3), Engine("x", is_dead=True)
    shutdown(patient, timeout=30)
    shutdown(hasty, timeout=0)
    shutdown(dead, timeout=30)
    assert (0, 3) == (patient.left_over, hasty.left_over)


def test_the_thread_that_writes_answers_does_not_wait_for_them() -> None:
    """Called in the event loop, it would wait for itself."""
    engine = Engine(unfinished=3)

    async def end() -> None:
        shutdown(engine, timeout=30)

    asyncio.run(end())
    assert 3 == engine.left_over


def test_health_fails_from_then_on() -> None:
    """Whoever balances load sends nothing more; before that vLLM's own answer counts."""
    engine = Engine()
    asyncio.run(check_health(engine))
    assert ["health"] == engine.calls
    shutdown(engine)
    with pytest.raises(DeadError):
        asyncio.run(check_health(engine))


def test_stock_vllm_ends_as_it_always_did() -> None:
    """Nothing is changed for an engine without Chameleon's scheduler."""
    engine = Engine(scheduler="vllm.v1.core.sched.scheduler.Scheduler", is_dead=True)
    shutdown(engine)
    assert not is_shutting_down(engine)
    asyncio.run(check_health(engine))


def test_an_engine_that_never_started_is_not_told_to_have_died() -> None:
    """Its own error is what matters."""
    engine = Engine()
    del engine.engine_core
    with pytest.raises(AttributeError, match="engine_core"):  # of the stock one
        shutdown(engine)
    assert is_shutting_down(engine)
