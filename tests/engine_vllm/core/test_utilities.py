"""What an engine process understands beyond vLLM, and when it wakes by itself."""

import queue
from dataclasses import asdict
from functools import partial
from types import SimpleNamespace
from typing import Any

import pytest

from chameleon_lora.engine_vllm.core.utilities import (
    _next_input,
    announce,
    pin,
    waking,
    withdraw,
)
from chameleon_lora.engine_vllm.messages import LoadAdapter
from tests.engine_vllm.fake_requests import ROOM, announced, make_driver

pytestmark = pytest.mark.vllm


class Engine:
    """An idle engine as far as its queue, its scheduler and its sleep."""

    def __init__(self) -> None:
        pytest.importorskip("vllm")
        self.driver = make_driver()
        self.scheduler = SimpleNamespace(chameleon=self.driver, chameleon_is_due=False)
        self.input_queue: queue.Queue[Any] = queue.Queue()
        self.aborts_queue: queue.Queue[Any] = queue.Queue()
        self.process_input_queue_block = True
        self.asked: list[Any] = []
        self.sleeps = False
        self.next_input = partial(_next_input, self, self.input_queue.get)

    def has_work(self) -> bool:
        """Whether to make a step."""
        return bool(self.scheduler.chameleon_is_due)

    def is_running(self) -> bool:
        """Not told to end."""
        return True

    def _notify_idle_state_callbacks(self) -> None:
        """Nobody waits for it to be idle."""

    def _handle_client_request(self, *asked: Any) -> None:
        self.asked.append(asked)

    def is_sleeping(self) -> bool:
        """Paused, or its memory gone."""
        return self.sleeps


def test_an_idle_engine_wakes_for_a_pin() -> None:
    """One step is due then, as if a client had asked for it; what clients ask comes first."""
    from vllm.v1.engine import EngineCoreRequestType

    engine = Engine()
    engine.driver.announce(announced("a"))
    engine.input_queue.put("a request")
    assert pin(engine, "a", is_pinned=True) is None
    assert ("a request", False) == (engine.next_input(), engine.scheduler.chameleon_is_due)
    assert (EngineCoreRequestType.WAKEUP, None) == engine.next_input()
    assert engine.scheduler.chameleon_is_due
    plan = engine.driver.begin_step(ROOM, 1.0)
    assert [LoadAdapter] == [type(command) for command in engine.driver.commands(plan)]


def test_vllms_own_wait_ends_when_a_step_is_due() -> None:
    """What clients ask meanwhile is handled first, as ever."""
    from vllm.v1.engine.core import EngineCoreProc

    engine = Engine()
    engine.driver.announce(announced("a"))
    pin(engine, "a", is_pinned=True)
    engine.input_queue.put(("asked", 1))
    waking(EngineCoreProc._process_input_queue)(engine)
    assert ("asked", 1) == engine.asked[0]
    assert engine.has_work()


def test_an_engine_that_sleeps_is_not_woken() -> None:
    """Its memory may be gone; nor is whoever only looks kept waiting."""
    engine = Engine()
    engine.driver.announce(announced("a"))
    pin(engine, "a", is_pinned=True)
    engine.sleeps = True
    engine.input_queue.put("wake up")
    assert "wake up" == engine.next_input()
    engine.sleeps = False
    with pytest.raises(queue.Empty):
        engine.next_input(block=False)
    assert not engine.scheduler.chameleon_is_due


def test_announcements_cross_the_border_by_their_fields_names() -> None:
    """From then on requests announce nothing: that is for whoever looks into files."""
    engine = Engine()
    source = announced("a")
    assert (1, True) == (announce(engine, [asdict(source)]), engine.driver.has_api_server)
    version = engine.driver.versions.current("a")
    assert version is not None
    assert source == version.source
    assert [1, 0] == [withdraw(engine, ["a"]), withdraw(engine, ["a"])]
