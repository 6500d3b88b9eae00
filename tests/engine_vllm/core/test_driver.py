"""Facts from vLLM's requests to the policy, and its plans back, over the real policy."""

from dataclasses import replace

import pytest
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from chameleon_lora.engine_vllm.messages import (
    ActivateAdapter,
    Activated,
    DropAdapter,
    LoadAdapter,
    Loaded,
    LoadFailed,
)
from chameleon_lora.policy.plan import Fault
from chameleon_lora.policy.request import RequestId
from chameleon_lora.policy.settings import CacheSettings, PolicySettings
from tests.engine_vllm.fake_requests import (
    LIMITS,
    MIB,
    ROOM,
    FakeRequest,
    announced,
    carry_out,
    make_driver,
    request_for,
)


class TestPlan:
    def test_a_request_waits_for_its_load_then_runs(self) -> None:
        """A cold adapter is loaded first; when it is in host memory its request gets slot 0."""
        driver = make_driver()
        version = driver.announce(announced("a"))
        driver.arrived(request_for("r", version))

        plan = driver.begin_step(ROOM, 1.0)
        assert ([], 1) == (list(driver.planned), driver.num_waiting)
        assert (LoadAdapter(version.id, "a", "/adapters/a", fingerprint="1"),) == driver.commands(
            plan
        )
        driver.end_step()

        driver.acknowledge([Loaded(version.id, MIB, 8, 0.1)], 1.1)
        plan = driver.begin_step(ROOM, 1.2)
        assert ["r"] == [request.request_id for request in driver.planned]
        assert (ActivateAdapter(version.id, 0),) == driver.commands(plan)

    def test_a_request_for_the_base_model_runs_at_once(self) -> None:
        """Without an adapter there is nothing to load."""
        driver = make_driver()
        driver.arrived(FakeRequest("r"))
        plan, admitted = carry_out(driver, 1.0)
        assert ["r"] == admitted
        assert () == driver.commands(plan)
        assert 0 == driver.num_waiting

    def test_commands_drop_before_they_load_and_load_before_they_activate(self) -> None:
        """Room is made before it is taken: first drops, withdrawn and evicted, then the rest."""
        driver = make_driver()
        first, second = driver.announce(announced("a")), driver.announce(announced("b"))
        driver.arrived(request_for("1", first))
        carry_out(driver, 1.0)
        driver.withdraw("a")
        driver.arrived(request_for("2", second))
        request = request_for("3", driver.announce(announced("c")))
        driver.arrived(request)
        plan = driver.begin_step(ROOM, 2.0)
        kinds = [type(command) for command in driver.commands(plan)]
        assert [LoadAdapter, LoadAdapter, ActivateAdapter] == kinds
        running = driver.planned.popleft()
        running.end = "stop"
        driver.end_step()
        plan = driver.begin_step(ROOM, 3.0)
        assert DropAdapter(first.id) == driver.commands(plan)[0]

    def test_a_3d_adapter_is_loaded_as_one(self) -> None:
        """What the API server says of the weights' form reaches the worker."""
        driver = make_driver()
        version = driver.announce(replace(announced("a"), is_3d=True))
        driver.arrived(request_for("r", version))
        plan = driver.begin_step(ROOM, 1.0)
        assert (
            LoadAdapter(
                version.id, "a", "/adapters/a", is_3d=True, fingerprint=version.source.fingerprint
            ),
        ) == driver.commands(plan)

    def test_an_activation_told_changes_nothing(self) -> None:
        """The plan took it as done already."""
        driver = make_driver()
        version = driver.announce(announced("a"))
        driver.acknowledge([Activated(version.id, 0, 0.01)], 1.0)
        assert 0 == driver.num_waiting

    def test_a_cold_activation_counts_for_the_disk_once(self) -> None:
        """What was read for its request; then what the worker says counts: KV blocks or host."""
        driver = make_driver()
        version = driver.announce(announced("a"))
        driver.arrived(request_for("r", version))
        carry_out(driver, 1.0)
        carry_out(driver, 2.0)
        acks = [Activated(version.id, 0, 0.01, from_device=d) for d in (False, True, False)]
        driver.acknowledge(acks, 3.0)
        stalls = driver.telemetry.counts()["activation_stall_seconds"]
        assert {"disk": 1, "device": 1, "host": 1} == {s: sum(stalls[s]["counts"]) for s in stalls}


class TestReconcile:
    @pytest.mark.parametrize(("end", "taught"), [("stop", 7), ("length", 7), ("abort", 128)])
    def test_what_vllm_ended_leaves_and_teaches_if_it_ended_well(
        self, end: str, taught: int
    ) -> None:
        """Any end frees the seat; only a whole output (here 7 tokens) teaches the next estimate."""
        driver = make_driver()
        request = FakeRequest("r", max_tokens=500)
        driver.arrived(request)
        carry_out(driver, 1.0)
        for _ in range(100):  # enough of them to outweigh the belief of 128 tokens
            request.num_output_tokens, request.end = 7, end
            request = FakeRequest("r", max_tokens=500)
            driver.arrived(request)
            carry_out(driver, 2.0)
        estimate = driver.policy.request(RequestId("r")).output_tokens
        assert taught == pytest.approx(estimate, abs=10)

    def test_an_ended_request_gives_its_seat_back(self) -> None:
        """With one seat the second request runs as soon as the first was aborted."""
        driver = make_driver(limits=replace(LIMITS, seats=1))
        room = replace(ROOM, seats=1)
        first, second = FakeRequest("1"), FakeRequest("2")
        driver.arrived(first)
        driver.arrived(second)
        assert ["1"] == carry_out(driver, 1.0, room)[1]
        assert [] == carry_out(driver, 2.0, room)[1]
        first.end = "abort"
        assert ["2"] == carry_out(driver, 3.0, room)[1]

    def test_a_waiting_request_that_is_aborted_leaves(self) -> None:
        """It is planned no more and counts no more."""
        driver = make_driver()
        version = driver.announce(announced("a"))
        request = request_for("r", version, end="abort")
        driver.arrived(request)
        driver.withdrawn(request)
        assert (0, []) == (driver.num_waiting, list(driver.waiting_requests()))
        carry_out(driver, 1.0)
        assert [] == carry_out(driver, 2.0)[1]

    def test_a_preempted_request_waits_again_with_what_it_made(self) -> None:
        """Back in its lane, it computes prompt and output so far when it runs again."""
        driver = make_driver()
        request = FakeRequest("r", num_prompt_tokens=10)
        driver.arrived(request)
        carry_out(driver, 1.0)
        request.num_output_tokens = 5
        driver.returned(request)
        assert (1, [request]) == (driver.num_waiting, list(driver.waiting_requests()))
        assert 15 == driver.policy.request(RequestId("r")).prefill_tokens
        assert ["r"] == carry_out(driver, 2.0)[1]

    def test_a_preempted_request_may_come_back_as_an_arrival(self) -> None:
        """vLLM hands it in through the same door; it is no second request."""
        driver = make_driver()
        request = FakeRequest("r")
        driver.arrived(request)
        carry_out(driver, 1.0)
        driver.arrived(request)
        assert [request] == list(driver.waiting_requests())

    def test_planned_but_not_admitted_comes_back_in_its_place(self) -> None:
        """If vLLM stops after the first, the others wait in their order and go next."""
        driver = make_driver()
        for name in "abc":
            driver.arrived(FakeRequest(name))
        driver.begin_step(ROOM, 1.0)
        assert 3 == len(driver.planned) == driver.num_waiting
        driver.planned.popleft()
        driver.end_step()
        assert (0, 2) == (len(driver.planned), driver.num_waiting)
        assert ["b", "c"] == [request.request_id for request in driver.waiting_requests()]
        assert ["b", "c"] == carry_out(driver, 2.0)[1]

    def test_an_id_may_be_used_again_before_the_end_was_seen(self) -> None:
        """A request that ended between two steps does not swallow the next of its name."""
        driver = make_driver()
        former = FakeRequest("r")
        driver.arrived(former)
        carry_out(driver, 1.0)
        former.end = "abort"
        request = FakeRequest("r")
        driver.arrived(request)
        assert [request] == list(driver.waiting_requests())
        driver.begin_step(ROOM, 2.0)
        assert [request] == list(driver.planned)


class TestFailures:
    def test_a_failed_load_ends_those_that_waited_for_it(self) -> None:
        """They count as waiting, so that vLLM steps on, until the plan names them and they go."""
        driver = make_driver()
        version = driver.announce(announced("a"))
        request = request_for("r", version)
        driver.arrived(request)
        driver.begin_step(ROOM, 1.0)
        driver.end_step()
        driver.acknowledge([LoadFailed(version.id, "adapter 'a': no weights", Fault.SERVER)], 1.5)
        assert 1 == driver.num_waiting
        plan = driver.begin_step(ROOM, 2.0)
        assert [("r", "adapter 'a': no weights")] == [(f.request_id, f.reason) for f in plan.fail]
        assert request is driver.forget(RequestId("r"))
        assert 0 == driver.num_waiting

    def test_a_failed_request_that_was_aborted_is_forgotten_once(self) -> None:
        """The client left before the failure was handed out: nobody is left to tell."""
        driver = make_driver()
        version = driver.announce(announced("a"))
        request = request_for("r", version)
        driver.arrived(request)
        driver.begin_step(ROOM, 1.0)
        driver.end_step()
        driver.acknowledge([LoadFailed(version.id, "gone", Fault.SERVER)], 1.5)
        request.end = "abort"
        driver.withdrawn(request)
        assert 0 == driver.num_waiting
        plan = driver.begin_step(ROOM, 2.0)
        assert [None] == [driver.forget(failure.request_id) for failure in plan.fail]

    def test_others_run_on(self) -> None:
        """A failure touches no request of another adapter."""
        driver = make_driver()
        broken, good = driver.announce(announced("a")), driver.announce(announced("b"))
        driver.arrived(request_for("1", broken))
        driver.arrived(request_for("2", good))
        driver.begin_step(ROOM, 1.0)
        driver.end_step()
        driver.acknowledge(
            [LoadFailed(broken.id, "no", Fault.SERVER), Loaded(good.id, MIB, 8, 0.1)], 1.5
        )
        assert ["2"] == carry_out(driver, 2.0)[1]


class TestAdapters:
    def test_a_new_version_leaves_requests_under_way_alone(self) -> None:
        """The former version is dropped when its last request has ended, not before."""
        driver = make_driver()
        former = driver.announce(announced("a", "1"))
        request = request_for("r", former)
        driver.arrived(request)
        carry_out(driver, 1.0)
        carry_out(driver, 2.0)
        driver.announce(announced("a", "2"))
        assert () == driver.commands(driver.begin_step(ROOM, 3.0))
        request.end = "stop"
        assert (DropAdapter(former.id),) == driver.commands(driver.begin_step(ROOM, 4.0))

    def test_pins_end_where_host_memory_ends(self) -> None:
        """Those that are still on disk count, one that is pinned again counts once."""
        driver = make_driver(settings=PolicySettings(cache=CacheSettings(host_bytes=2 * MIB)))
        for name in "abc":
            driver.announce(announced(name))
        assert [None] * 3 == [driver.pin(name, is_pinned=True) for name in "aba"]
        assert f"With 'c', {3 * MIB} bytes" in str(driver.pin("c", is_pinned=True))
        assert driver.pin("a", is_pinned=False) is None
        assert driver.pin("c", is_pinned=True) is None

    def test_withdrawing_answers_whether_the_name_was_known(self) -> None:
        """The second time it was not."""
        driver = make_driver()
        driver.announce(announced("a"))
        assert [True, False] == [driver.withdraw("a"), driver.withdraw("a")]

    def test_the_same_announcement_registers_once(self) -> None:
        """Several API servers may announce the same adapter."""
        driver = make_driver()
        version = driver.announce(announced("a"))
        assert version is driver.announce(announced("a"))
        assert [version.id] == list(driver.policy.adapters)

    def test_what_was_replaced_or_withdrawn_is_forgotten(self) -> None:
        """After 20,000 contents of one name, each of which was read, the tables are as before."""
        driver = make_driver()
        first = driver.announce(announced("a"))
        for number in range(20_000):
            driver.announce(announced("a", str(number)))
            if not number % 100:  # one in so many is read too
                driver.pin("a", is_pinned=True)
                carry_out(driver, float(number))
                driver.pin("a", is_pinned=False)
        driver.announce(announced("a"))
        carry_out(driver, 30_000.0)
        tables = [*vars(driver).values(), *vars(driver.versions).values()]
        assert 10 > sum(len(table) for table in tables if isinstance(table, dict | set))
        assert first.id not in driver.policy.adapters


class DriverMachine(RuleBasedStateMachine):
    """Any order of arrivals, ends, preemptions, announcements, failed loads and partial steps.

    Kept beside it, as vLLM keeps them: who waits, and who runs.
    """

    def __init__(self) -> None:
        super().__init__()
        self.driver = make_driver()
        self.now_s = 0.0
        self.count = 0
        self.waiting: dict[str, FakeRequest] = {}
        self.active: dict[str, FakeRequest] = {}
        self.loading: list[LoadAdapter] = []

    @rule(name=st.sampled_from("abc"), fingerprint=st.sampled_from("12"))
    def announce(self, name: str, fingerprint: str) -> None:
        self.driver.announce(announced(name, fingerprint))

    @rule(name=st.sampled_from("abc"))
    def withdraw(self, name: str) -> None:
        self.driver.withdraw(name)

    @rule(name=st.sampled_from(["a", "b", "c", None]), tokens=st.integers(1, 600))
    def arrive(self, name: str | None, tokens: int) -> None:
        self.count += 1
        version = self.driver.versions.current(name) if name else None
        request_id = f"r{self.count}"
        request = FakeRequest(request_id, num_prompt_tokens=tokens)
        if version is not None:
            request = request_for(request_id, version, num_prompt_tokens=tokens)
        self.waiting[request_id] = request
        self.driver.arrived(request)

    @rule(admits=st.integers(0, 8), seats=st.integers(0, 8))
    def step(self, admits: int, seats: int) -> None:
        self.now_s += 1.0
        plan = self.driver.begin_step(replace(ROOM, seats=seats), self.now_s)
        for failure in plan.fail:
            request = self.driver.forget(failure.request_id)
            if request is not None:
                del self.waiting[request.request_id]
        for _ in range(min(admits, len(self.driver.planned))):
            request = self.driver.planned.popleft()
            self.active[request.request_id] = self.waiting.pop(request.request_id)
        self.driver.end_step()
        for command in self.driver.commands(plan):
            if isinstance(command, LoadAdapter):
                self.loading.append(command)

    @rule(good=st.booleans())
    def loads_end(self, good: bool) -> None:
        for load in self.loading:
            ack = (
                Loaded(load.adapter_id, MIB, 8, 0.1)
                if good
                else LoadFailed(load.adapter_id, "no", Fault.SERVER)
            )
            self.driver.acknowledge([ack], self.now_s)
        self.loading.clear()

    @rule(data=st.data(), end=st.sampled_from(["stop", "length", "abort"]))
    def end_running(self, data: st.DataObject, end: str) -> None:
        if self.active:
            request = self.active.pop(data.draw(st.sampled_from(sorted(self.active))))
            request.num_output_tokens, request.end = 3, end

    @rule(data=st.data())
    def preempt(self, data: st.DataObject) -> None:
        if self.active:
            request = self.active.pop(data.draw(st.sampled_from(sorted(self.active))))
            request.num_output_tokens += 1
            self.waiting[request.request_id] = request
            self.driver.returned(request)

    @rule(data=st.data())
    def abort_waiting(self, data: st.DataObject) -> None:
        if self.waiting:
            request = self.waiting.pop(data.draw(st.sampled_from(sorted(self.waiting))))
            request.end = "abort"
            self.driver.withdrawn(request)

    @invariant()
    def the_queue_holds_exactly_who_waits(self) -> None:
        waiting = [request.request_id for request in self.driver.waiting_requests()]
        assert sorted(self.waiting) == sorted(waiting)
        assert len(self.waiting) == self.driver.num_waiting

    @invariant()
    def no_adapter_outlives_its_use(self) -> None:
        known = {self.driver.versions.current(name) for name in "abc"}
        strays = [
            entry
            for entry in map(self.driver.policy.adapter, self.driver.policy.adapters)
            if entry.adapter.id not in {version.id for version in known if version}
            and not (entry.running or entry.queued)
            and entry.adapter.id not in {load.adapter_id for load in self.loading}
        ]
        assert [] == strays


TestDriverMachine = DriverMachine.TestCase
