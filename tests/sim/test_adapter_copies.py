"""Where an adapter is found, and how long a step waits for it."""

from chameleon_lora.policy.plan import Activation, Promotion, StepBudget
from chameleon_lora.policy.request import AdapterId, Request, RequestId
from chameleon_lora.policy.scheduler import Scheduler
from chameleon_lora.policy.settings import EngineLimits, PolicySettings
from chameleon_lora.sim.adapter_copies import AdapterCopies
from chameleon_lora.sim.kernel import Kernel
from chameleon_lora.sim.outcome import Found
from chameleon_lora.sim.profile import Basis, Link, Memory, Profile, StepCosts
from tests.policy.engine_model import adapter

ONE, TWO = AdapterId(1), AdapterId(2)
PROFILE = Profile(
    name="test",
    model="none",
    machine="none",
    basis=Basis.MEASURED,
    source="",
    memory=Memory(1000, 1, 100),
    step=StepCosts(1.0, 0.0, 0.0, 0.0),
    host_link=Link(100.0),
    device_copy=Link(1000.0),
    disk=Link(50.0),
)


def make(*, is_paged: bool, block_bytes: int = 16) -> tuple[AdapterCopies, Kernel, Scheduler]:
    """Adapter 1 of 100 bytes, 2 of 200: 1 and 2 s on the host link, a tenth on the device."""
    limits = EngineLimits(4, 2, 1000, 1, block_bytes=block_bytes, is_paged=is_paged)
    policy, kernel = Scheduler(PolicySettings(), limits), Kernel()
    adapters = {ONE: adapter(1, 100), TWO: adapter(2, 200)}
    for known in adapters.values():
        policy.registered(known)
    return AdapterCopies(PROFILE, policy, kernel, adapters), kernel, policy


def use(traffic: AdapterCopies, now_s: float, adapter_id: AdapterId = ONE) -> tuple[Found, float]:
    """Where the adapter is at this time, and when it can be used."""
    return traffic.activate(Activation(adapter_id, 0), now_s)


def promote(traffic: AdapterCopies, now_s: float, *evicts: AdapterId) -> None:
    """Adapter 1 is copied into KV blocks."""
    traffic.promote(Promotion(ONE, 1, 7, evicts), now_s)


class TestSlots:
    def test_each_copy_to_a_slot_crosses_the_link(self) -> None:
        """Nothing is on the device: two in a row take 1 s and then 2 s more."""
        traffic, _, _ = make(is_paged=False)
        assert (Found.HOST, 6.0) == use(traffic, 5.0)
        assert (Found.HOST, 8.0) == use(traffic, 5.0, TWO)
        assert (300, 3.0) == (traffic.link.nbytes, traffic.link.busy_s)

    def test_a_complete_copy_in_kv_blocks_is_a_tenth_away(self) -> None:
        """And the link stays idle; before it is complete it is of no use."""
        traffic, _, _ = make(is_paged=False)
        promote(traffic, 0.0)
        assert (Found.DEVICE, 1.1) == use(traffic, 1.0)
        assert 100 == traffic.link.nbytes
        traffic, _, _ = make(is_paged=False)
        promote(traffic, 0.0)
        assert (Found.HOST, 2.0) == use(traffic, 0.5)


class TestPaged:
    def test_what_was_copied_stays_until_its_blocks_go(self) -> None:
        """The second use finds it; after its blocks are free it is copied again."""
        traffic, _, _ = make(is_paged=True)
        assert (Found.HOST, 6.0) == use(traffic, 5.0)
        assert (Found.DEVICE, 7.0) == use(traffic, 7.0)
        traffic.gone([ONE])
        assert (Found.HOST, 9.0) == use(traffic, 8.0)

    def test_a_copy_under_way_is_waited_for(self) -> None:
        """Half of it is left, and it is not begun again."""
        traffic, _, _ = make(is_paged=True)
        promote(traffic, 0.0)
        assert (Found.LINK, 1.0) == use(traffic, 0.5)
        assert 100 == traffic.link.nbytes

    def test_those_replaced_are_gone(self) -> None:
        """A promotion takes the blocks of others, who must be copied again."""
        traffic, _, _ = make(is_paged=True)
        use(traffic, 0.0, TWO)
        promote(traffic, 2.0, TWO)
        assert (Found.HOST, 5.0) == use(traffic, 3.0, TWO)

    def test_a_copy_that_was_called_off_still_used_the_link(self) -> None:
        """The next one waits for it."""
        traffic, _, _ = make(is_paged=True)
        promote(traffic, 0.0)
        traffic.gone([ONE])
        assert (Found.HOST, 2.0) == use(traffic, 0.25)


def test_in_host_memory_nothing_is_copied() -> None:
    """It runs at once; what was read from disk for this is told from what was there."""
    traffic, _, _ = make(is_paged=True, block_bytes=0)
    assert (Found.DEVICE, 5.0) == use(traffic, 5.0)
    assert (Found.HOST, 5.0) == traffic.activate(Activation(TWO, 0, is_cold=True), 5.0)
    assert 0 == traffic.link.nbytes


def test_reads_queue_for_the_disk_and_the_policy_is_told() -> None:
    """100 and 200 bytes at 50 a second: in host memory after 2 s and after 6 s."""
    traffic, kernel, policy = make(is_paged=True)
    for adapter_id in (ONE, TWO):
        policy.pin(adapter_id, is_pinned=True)
    for load in policy.step(0.0, StepBudget(0, 0, 0)).loads:
        traffic.load(load, 0.0)
    assert 2.0 == kernel.next_s()
    kernel.run()
    assert (6.0, [True, True]) == (
        kernel.now_s,
        [known.is_in_host for known in policy.view(6.0).adapters],
    )


def test_the_policy_is_told_when_a_copy_is_complete() -> None:
    """The event carries the promotion's serial."""
    traffic, kernel, policy = make(is_paged=True)
    policy.preloaded(ONE, 0.0)
    policy.arrived(Request(RequestId("r"), ONE, 1, 1), 0.0)
    (promotion,) = policy.step(0.0, StepBudget(0, 0, 0, free_blocks=60)).promotions
    traffic.promote(promotion, 0.0)
    assert not policy.adapter(ONE).is_on_device
    kernel.run()
    assert (1.0, True) == (kernel.now_s, policy.adapter(ONE).is_on_device)
