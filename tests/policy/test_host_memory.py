"""Adapters that run from host memory, where no KV block holds any (ADR 0028)."""

from dataclasses import replace

from hypothesis import strategies as st
from hypothesis.stateful import initialize, invariant, precondition, rule

from chameleon_lora.policy.memory.residency import CacheSettings
from chameleon_lora.policy.request import AdapterId, RequestId
from chameleon_lora.policy.settings import AdmissionSettings, EngineLimits, PolicySettings
from chameleon_lora.policy.view import Place
from tests.policy.engine_model import EngineModel, adapter, request
from tests.policy.invariants import check, check_idle
from tests.policy.test_scheduler_machine import LIMITS, PICKS, SchedulerMachine, policies

ONE = AdapterId(1)
IN_HOST = EngineLimits(seats=8, slots=0, kv_tokens=1600, kv_bytes_per_token=100, is_paged=True)


def with_host_memory(adapters: int, overtake_limit: int = 4) -> EngineModel:
    """Host memory for so many of three adapters, which batches use from there."""
    settings = PolicySettings(
        cache=CacheSettings(host_bytes=1000 * adapters),
        admission=AdmissionSettings(overtake_limit=overtake_limit),
    )
    engine = EngineModel(settings, IN_HOST)
    engine.register(*(adapter(number, 1000) for number in (1, 2, 3)))
    return engine


def run_with(engine: EngineModel, *numbers: int, output: int) -> None:
    """A request of each adapter runs, which was read for it."""
    for number in numbers:
        engine.arrive(request(f"r{number}", number, output=output), output)
    while not engine.running.keys() >= {f"r{number}" for number in numbers}:
        engine.step()
    check(engine)


class TestHostMemory:
    def test_what_is_there_can_run(self) -> None:
        """Three adapters in one step on an engine of one slot; no KV block is anybody's."""
        engine = with_host_memory(3)
        run_with(engine, 1, 2, 3, output=50)
        assert ({1, 2, 3}, {}, 0) == (engine.in_use, engine.lent, engine.policy.busy_blocks)
        assert Place.HOST is engine.policy.adapter(ONE).place

    def test_full_of_adapters_in_use_the_next_one_waits(self) -> None:
        """It is read when one of the two ends, in its place, and nobody fails."""
        engine = with_host_memory(2)
        run_with(engine, 1, output=50)
        run_with(engine, 2, output=90)
        engine.arrive(request("waits", 3), 5)
        while "r1" in engine.running:
            assert () == engine.step().loads
        assert [(3, (ONE,))] == [(load.adapter_id, load.evicts) for load in engine.step().loads]
        engine.run_until_idle()
        check_idle(engine)
        assert not any(done.failure for done in engine.done.values())

    def test_those_whose_adapters_are_there_pass_so_often_and_no_more(self) -> None:
        """Requests of both others come without end; the third adapter's is served."""
        engine = with_host_memory(2)
        run_with(engine, 1, 2, output=20)
        engine.arrive(request("waits", 3), 5)
        for number in range(100):
            engine.arrive(request(f"more{number}", 1 + number % 2, output=20), 20)
            engine.step()
            check(engine)
        assert engine.done[RequestId("waits")].end_s is not None

    def test_a_pinned_adapter_stays_though_nobody_uses_it(self) -> None:
        """The third waits for the one that is in use."""
        engine = with_host_memory(2)
        engine.policy.pin(ONE, is_pinned=True)
        run_with(engine, 2, output=50)
        engine.arrive(request("waits", 3), 5)
        engine.run_until_idle()
        check_idle(engine)
        assert {ONE, 3} == engine.host

    def test_withdrawn_while_in_use_it_goes_when_its_last_request_ends(self) -> None:
        """And the same content comes back under another number."""
        engine = with_host_memory(2)
        run_with(engine, 1, output=20)
        engine.policy.unregistered(ONE)
        assert () == engine.step().drops
        engine.run_until_idle()
        assert ((ONE,), set()) == (engine.step().drops, engine.host)
        engine.register(adapter(4, 1000))
        run_with(engine, 4, output=5)


class HostMemoryMachine(SchedulerMachine):
    """All facts, at an engine whose adapters lie in host memory only: nobody fails for want of room."""

    @initialize(settings=policies(), limits=LIMITS)
    def start(self, settings: PolicySettings, limits: EngineLimits) -> None:  # type: ignore[explicit-override]  # typing.override: Python 3.12
        super().start(settings, replace(limits, slots=0, is_paged=True))

    @precondition(lambda self: self.registered)
    @rule(pick=PICKS, is_pinned=st.booleans())
    def pin(self, pick: int, is_pinned: bool) -> None:
        """As an engine does, never more than host memory has room for."""
        adapter_id, policy = self.pick(self.registered, pick), self.engine.policy
        budget = self.engine.settings.cache.host_bytes
        if not is_pinned or budget is None or policy.bytes_if_pinned(adapter_id) <= budget:
            policy.pin(adapter_id, is_pinned=is_pinned)

    @invariant()
    def fails_for_a_reason(self) -> None:
        """Broken, too large, or no room beside what is pinned: never because others are in use."""
        failures = [d.failure for d in self.engine.done.values()] if hasattr(self, "engine") else []
        reasons = ("truncated", "above cache.host_bytes", "of pinned adapters")
        assert all(any(reason in failure for reason in reasons) for failure in failures if failure)


TestHostMemoryMachine = HostMemoryMachine.TestCase
