"""Pinned adapters: read without being asked for, whatever becomes of the requests that name them."""

from chameleon_lora.policy.memory.prefetch import RETRY_PINNED_S
from chameleon_lora.policy.memory.residency import CacheSettings
from chameleon_lora.policy.plan import Fault, StepBudget, StepPlan
from chameleon_lora.policy.request import AdapterId
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import EngineLimits, PolicySettings
from tests.policy.engine_model import adapter, request

ONE, TWO = AdapterId(1), AdapterId(2)
ROOM = StepBudget(seats=4, kv_tokens=4000, batch_tokens=512)
NEVER_S = float("inf")


def make(host_bytes: int | None = None, nbytes: int = 1000) -> Scheduler:
    """Two adapters on disk, the first of them, of `nbytes`, pinned; the other one has 1,000 bytes."""
    limits = EngineLimits(seats=4, slots=2, kv_tokens=4000, kv_bytes_per_token=1000)
    policy = Scheduler(PolicySettings(cache=CacheSettings(host_bytes=host_bytes)), limits)
    policy.registered(adapter(1, nbytes))
    policy.registered(adapter(2, 1000))
    policy.pin(ONE, is_pinned=True)
    return policy


def loads(plan: StepPlan) -> list[int]:
    """The adapters that the plan reads."""
    return [load.adapter_id for load in plan.loads]


def test_a_pin_outlives_an_aborted_request() -> None:
    """A request came and went before the first step; the adapter is read all the same."""
    policy = make()
    policy.arrived(request("a", 1), 0.0)
    policy.finished(request("a").id, 0, 0.0)
    assert [1] == loads(policy.step(0.0, ROOM))


def test_one_that_could_not_be_read_is_read_again_later() -> None:
    """Not before the interval is over, and again after each failure."""
    policy = make()
    failed_s = 0.0
    for _ in range(3):
        assert [1] == loads(policy.step(failed_s, ROOM))
        policy.load_failed(ONE, "its file is gone", failed_s, Fault.SERVER)
        assert failed_s + RETRY_PINNED_S == policy.work_due_s()
        assert [] == loads(policy.step(failed_s + 0.9 * RETRY_PINNED_S, ROOM))
        failed_s += RETRY_PINNED_S
    assert [1] == loads(policy.step(failed_s, ROOM))
    policy.loaded(ONE, 1000, 8, failed_s)
    assert NEVER_S == policy.work_due_s()
    assert [] == loads(policy.step(failed_s + 2 * RETRY_PINNED_S, ROOM))


def test_a_request_reads_it_sooner() -> None:
    """It comes after the pause for broken adapters, and before the next try."""
    policy = make()
    policy.step(0.0, ROOM)
    policy.load_failed(ONE, "its file is gone", 0.0, Fault.SERVER)
    policy.arrived(request("a", 1), 5.0)
    assert [1] == loads(policy.step(5.0, ROOM))


def test_unpinned_or_withdrawn_it_is_not_read_again() -> None:
    """Nobody wants it any more."""
    for is_withdrawn in (False, True):
        policy = make()
        policy.step(0.0, ROOM)
        policy.load_failed(ONE, "its file is gone", 0.0, Fault.SERVER)
        if is_withdrawn:
            policy.unregistered(ONE)
        else:
            policy.pin(ONE, is_pinned=False)
        assert [] == loads(policy.step(2 * RETRY_PINNED_S, ROOM))
        assert NEVER_S == policy.work_due_s()


def test_one_that_is_too_large_is_in_nobodys_way() -> None:
    """Another pinned one is read in the step after; the large one is looked at again later."""
    policy = make(host_bytes=1500, nbytes=2000)
    policy.pin(TWO, is_pinned=True)
    assert [[], [2]] == [loads(policy.step(0.0, ROOM)) for _ in range(2)]
    policy.loaded(TWO, 1000, 8, 0.0)
    assert RETRY_PINNED_S == policy.work_due_s()


def test_the_work_behind_one_that_is_too_large_is_due() -> None:
    """An engine without requests makes steps for the next one, though the large one came first."""
    policy = make(host_bytes=1500, nbytes=2000)
    policy.pin(TWO, is_pinned=True)
    policy.step(0.0, ROOM)
    assert 0.0 == policy.work_due_s()
    assert [2] == loads(policy.step(0.1, ROOM))


def test_room_among_many_small_ones_is_looked_for_until_it_is_found() -> None:
    """An eviction looks at a sample, so one look may not do; afterwards nothing is due for ever."""
    policy = make(host_bytes=1000, nbytes=500)
    policy.pin(ONE, is_pinned=False)
    for number in range(3, 1003):
        policy.registered(adapter(number, 1))
        policy.preloaded(AdapterId(number), 0.0)
    policy.pin(ONE, is_pinned=True)
    steps = 0
    while not loads(policy.step(0.0, ROOM)):
        assert 0.0 == policy.work_due_s()
        steps += 1
    assert steps < 64


def test_work_is_due_while_something_is_to_be_read_or_told() -> None:
    """From the pin to the end of its load, and while an adapter is to be dropped."""
    policy = make()
    assert 0.0 == policy.work_due_s()
    policy.step(0.0, ROOM)
    assert 0.0 == policy.work_due_s()
    policy.loaded(ONE, 1000, 8, 0.1)
    assert NEVER_S == policy.work_due_s()
    policy.unregistered(ONE)
    assert 0.0 == policy.work_due_s()
    assert (ONE,) == policy.step(0.2, ROOM).drops
    assert NEVER_S == policy.work_due_s()


def test_what_finds_no_room_beside_pinned_ones_ends_with_the_reason() -> None:
    """Its request fails, the one behind it runs, and after the unpinning it would be read."""
    policy = make(host_bytes=2500)
    policy.step(0.0, ROOM)
    policy.loaded(ONE, 1000, 8, 0.0)
    for number, nbytes in ((3, 2000), (4, 1000)):
        policy.registered(adapter(number, nbytes))
        policy.arrived(request(f"r{number}", number), 0.1)
    plans = [policy.step(0.1, ROOM) for _ in range(2)]
    failure = plans[0].fail[0]
    assert ("r3", True) == (failure.request_id, "unpin some" in failure.reason)
    assert [4] == loads(plans[1])
    policy.loaded(AdapterId(4), 1000, 8, 0.2)
    policy.finished(request("r4").id, 0, 0.2)
    policy.pin(ONE, is_pinned=False)
    policy.arrived(request("again", 3), 5.0)
    assert [3] == loads(policy.step(5.0, ROOM))


def test_what_pins_would_take_is_known_before() -> None:
    """Those that are pinned and one more; itself is counted once. Nothing is pinned by the question."""
    policy = make()
    assert [1000, 2000] == [policy.bytes_if_pinned(known) for known in (ONE, TWO)]
    assert not policy.adapter(TWO).is_pinned
